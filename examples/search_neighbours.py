"""Embed a folder of videos, then find the moments most like a moment of your choice.

python examples/search_neighbours.py VIDEOS runs/VIDEOS-a0.9/weights.safetensors a.mp4 12.5
"""

import sys
from pathlib import Path

import numpy as np

import timegrain


def search(
    folder: Path, weights: Path, video: Path, second: float, num_results: int = 5
) -> list[tuple[str, float, float]]:
    """(file, seconds, cosine similarity) of the moments most like `second` of `video`, one per file."""
    model = timegrain.load(weights)
    query = model.embed(video)
    moment = np.abs(query.timestamps_seconds - second).argmin()
    wanted = query.features[moment] / np.linalg.norm(query.features[moment])

    found = []
    for path in sorted(path for path in folder.rglob("*.mp4") if path.resolve() != video.resolve()):
        other = model.embed(path)
        likeness = other.features @ wanted / np.linalg.norm(other.features, axis=1)
        best = int(likeness.argmax())
        found.append((str(path), float(other.timestamps_seconds[best]), float(likeness[best])))
    return sorted(found, key=lambda row: -row[2])[:num_results]


if __name__ == "__main__":
    folder, weights, video, second = sys.argv[1:]
    for path, seconds, likeness in search(Path(folder), Path(weights), Path(video), float(second)):
        print(f"{likeness:.3f}  {path}  at {seconds:.1f} s")
