"""Where does something change? Peaks of the difference between what lies before and after each time step.

python examples/find_boundaries.py a.mp4 runs/VIDEOS-a0.9/weights.safetensors

Nothing is learned about boundaries here; features that resolve time are enough to look for them.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.signal import find_peaks

import timegrain


def boundaries(video: Path, weights: Path, half_window: int = 4, prominence: float = 1.0) -> list[float]:
    """Times in seconds at which the mean feature of `half_window` steps before differs most from that after.

    `prominence` is how far a peak must stand out, in standard deviations over the video.
    """
    seen = timegrain.load(weights).embed(video, overlap=0.5)
    features = seen.features - seen.features.mean(axis=0)
    change = np.zeros(len(features))
    for step in range(half_window, len(features) - half_window):
        before = features[step - half_window : step].mean(axis=0)
        after = features[step : step + half_window].mean(axis=0)
        change[step] = 1 - before @ after / (np.linalg.norm(before) * np.linalg.norm(after) + 1e-12)
    peaks, _ = find_peaks(change, prominence=max(prominence * change.std(), 1e-9))
    return [float(seconds) for seconds in seen.start_seconds[peaks]]


if __name__ == "__main__":
    for seconds in boundaries(Path(sys.argv[1]), Path(sys.argv[2])):
        print(f"{seconds:.2f} s")
