"""Where does something change? Segments of a video, by the change of an encoder's features or by a trained detector.

python examples/find_boundaries.py a.mp4 runs/VIDEOS-a0.9/weights.safetensors

With the weights of an encoder nothing was learned about boundaries: features that resolve time are enough to look for
them. With those of `timegrain boundaries train` the trained detector and its threshold are used.
"""

import sys
from pathlib import Path

import timegrain


def main(video: Path, weights: Path) -> None:
    """Print the segments, and how strong the boundary at each one's end is."""
    found = timegrain.find_boundaries(video, model=weights)
    for (start, end), strength in zip(found.segments, [*found.strengths, None], strict=True):
        print(f"{start:6.2f} s to {end:6.2f} s" + (f"   boundary {strength:.3f}" if strength is not None else ""))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
