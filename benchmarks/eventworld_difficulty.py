"""How hard EventWorld is: chance, pixel statistics, raw pixels and small supervised nets, for each label space.

    python benchmarks/eventworld_difficulty.py --difficulty medium --seed 1000

Videos are rendered in memory, not encoded. About three minutes on one core with the defaults. The table answers three
questions: can a label be read from a single pixel statistic (it should not), do raw pixels do some of the work (they
should, well below a trained net), and does a motion need more than one frame (it should)?
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from scipy.stats import kurtosis, skew
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from timegrain.data.eventworld_render import DIFFICULTIES, MOTIONS, POSTURES, SCENES, EventWorldConfig, generate


class World:
    """All videos of a split in memory, with one row per event."""

    def __init__(self, config, seed, split, num_videos):
        videos = [generate(config, seed, split, index) for index in range(num_videos)]
        self.frames = np.stack([video.frames[..., 0] for video in videos])
        self.scene = np.array([SCENES.index(video.scene) for video in videos])
        rows = [
            (i, round(e.start_seconds * config.fps), round(e.end_seconds * config.fps), e)
            for i, video in enumerate(videos)
            for e in video.events
        ]
        self.video, self.start, self.stop = (np.array([row[k] for row in rows]) for k in range(3))
        self.posture = np.array([POSTURES.index(row[3].posture) for row in rows])
        self.motion = np.array([MOTIONS.index(row[3].motion) for row in rows])

    def event_clips(self, length, rng=None):
        """Frames of every event, (num_events, length, H, W): around its middle, or anywhere in it given `rng`."""
        where = np.full(len(self.video), 0.5) if rng is None else rng.uniform(0, 1, len(self.video))
        spare = np.maximum(self.stop - self.start - length, 0)
        first = np.where(
            self.stop - self.start > length, self.start + where * spare, (self.start + self.stop - length) / 2
        ).astype(int)
        first = first.clip(0, self.frames.shape[1] - length)
        return self.frames[self.video[:, None], first[:, None] + np.arange(length)]


def statistics(pixels):
    """What a marginal distribution of grey values tells, (num, 40): moments, extremes and a 32-bin histogram."""
    pixels = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
    histogram = np.stack([np.bincount((row * 31.999).astype(int), minlength=32) / row.size for row in pixels])
    moments = [
        pixels.mean(1),
        pixels.std(1),
        skew(pixels, axis=1),
        kurtosis(pixels, axis=1),
        pixels.min(1),
        pixels.max(1),
    ]
    percentiles = np.percentile(pixels, [5, 25, 50, 75, 95], axis=1)
    return np.concatenate([np.stack(moments, 1), percentiles.T, histogram], 1)


def logistic(train, train_labels, test, test_labels, strength=1.0):
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100, tol=1e-3))
    return float(probe.fit(train, train_labels).score(test, test_labels))


def best_single(train, train_labels, test, test_labels, num=24):
    """The single statistic that fits the training labels best, alone with its square in a logistic regression."""
    scores = []
    for column in np.linspace(0, train.shape[1] - 1, min(num, train.shape[1])).astype(int):
        x, y = train[:, [column]], test[:, [column]]
        x, y = (x - x.mean()) / (x.std() + 1e-6), (y - x.mean()) / (x.std() + 1e-6)
        probe = LogisticRegression(max_iter=100, tol=1e-3).fit(np.hstack([x, x * x]), train_labels)
        scores.append(
            (probe.score(np.hstack([x, x * x]), train_labels), probe.score(np.hstack([y, y * y]), test_labels))
        )
    return float(max(scores)[1])


def net(num_classes, in_3d):
    time = [3, 3, 3] if in_3d else [1, 1, 1]
    width = [12, 24, 64] if in_3d else [24, 48, 96]
    layers, channels = [], 1
    for depth, (t, w) in enumerate(zip(time, width, strict=True)):
        size = 5 if depth == 0 else 3
        stride = (2 if in_3d and depth else 1, 2, 2)
        layers += [nn.Conv3d(channels, w, (t, size, size), stride, (t // 2, size // 2, size // 2), bias=False)]
        layers += [nn.BatchNorm3d(w), nn.ReLU()]
        channels = w
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def supervised(train_clips, train_labels, test_clips, test_labels, num_classes, steps, seed):
    """Accuracy of a small net; `train_clips()` draws fresh (N, T, H, W) windows for every pass."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    clips = train_clips()
    model = net(num_classes, in_3d=clips.shape[1] > 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    order = np.empty(0, int)

    def as_input(x):
        x = torch.from_numpy(np.ascontiguousarray(x)).float()[:, None] / 255
        return x - x.mean((2, 3, 4), keepdim=True)

    for _ in range(steps):
        if len(order) < 64:
            clips, order = train_clips(), rng.permutation(len(train_labels))
        batch, order = order[:64], order[64:]
        loss = nn.functional.cross_entropy(model(as_input(clips[batch])), torch.from_numpy(train_labels[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        guess = torch.cat(
            [model(as_input(part)).argmax(1) for part in np.array_split(test_clips, len(test_clips) // 100)]
        )
    return float((guess.numpy() == test_labels).mean())


def chance(labels, test_labels):
    return float((test_labels == np.bincount(labels).argmax()).mean())


def measure(config, seed, num_train, num_test, steps):
    train, test = World(config, seed, "train", num_train), World(config, seed, "test", num_test)
    rng = np.random.default_rng(seed)
    table = {}
    middle, middle_test = train.event_clips(9), test.event_clips(9)
    few, few_test = (w.frames[:, ::8] for w in (train, test))
    for name, clips, clips_test, y, y_test in (
        ("posture", middle, middle_test, train.posture, test.posture),
        ("motion", middle, middle_test, train.motion, test.motion),
        ("scene", few, few_test, train.scene, test.scene),
    ):
        s, s_test = statistics(clips), statistics(clips_test)
        one, one_test = statistics(clips[:, 4]), statistics(clips_test[:, 4])
        pixels, pixels_test = (c[:, 4].reshape(len(c), -1) / 255 for c in (clips, clips_test))
        mean, mean_test = (c.mean(1).reshape(len(c), -1) / 255 for c in (clips, clips_test))
        table[name] = {
            "chance": chance(y, y_test),
            "best single statistic of a frame": best_single(one, y, one_test, y_test),
            "best single pixel": best_single(pixels, y, pixels_test, y_test),
            "all statistics of a frame": logistic(one, y, one_test, y_test),
            "all statistics of an event / video": logistic(s, y, s_test, y_test),
            "raw pixels, one frame": logistic(pixels, y, pixels_test, y_test, 1e-3),
            "raw pixels, mean of an event / video": logistic(mean, y, mean_test, y_test, 1e-3),
        }
    table["posture"]["net, one frame"] = supervised(
        lambda: train.event_clips(1, rng), train.posture, test.event_clips(1), test.posture, len(POSTURES), steps, seed
    )
    table["motion"]["net, one frame"] = supervised(
        lambda: train.event_clips(1, rng), train.motion, test.event_clips(1), test.motion, len(MOTIONS), steps, seed
    )
    table["motion"]["net, 12 frames"] = supervised(
        lambda: train.event_clips(12, rng), train.motion, test.event_clips(12), test.motion, len(MOTIONS), steps, seed
    )

    def any_frame():
        return train.frames[np.arange(num_train), rng.integers(0, config.num_frames, num_train)][:, None]

    table["scene"]["net, one frame"] = supervised(
        any_frame, train.scene, test.frames[:, 60:61], test.scene, len(SCENES), steps, seed
    )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--difficulty", choices=DIFFICULTIES, default="medium")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--num-train", type=int, default=800)
    parser.add_argument("--num-test", type=int, default=300)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.time()
    config = EventWorldConfig(**DIFFICULTIES[arguments.difficulty])
    table = measure(config, arguments.seed, arguments.num_train, arguments.num_test, arguments.steps)
    for name, rows in table.items():
        print(f"{name}, {arguments.difficulty}")
        for row, value in rows.items():
            print(f"  {row:<40} {value:.3f}")
    print(
        json.dumps(
            {"difficulty": arguments.difficulty, "seed": arguments.seed, "seconds": time.time() - began, **table}
        )
    )
