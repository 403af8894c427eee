"""From a video file to the two clips of a TeG sample, beside what a user would pick instead.

    python benchmarks/input_pipeline.py [ROUNDS]

A sample is a long clip (32 frames, stride 4) somewhere in the video and a short one (16, stride 2) inside it: 40 to 48
different frames, each clip with a box of its own. Every round all methods read the same sample. They differ in how they
reach the frames; where the work ends in uint8 clips of 224x224, all cut and resize with the same OpenCV calls. One
thread each, files in the system's cache, all in one process.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data._utils import worker

import media
import peers
from augmentation import ALL_ON, torchvision_v2
from measure import Row, measure, not_measured, row
from same_ffmpeg import restart_with_it
from timegrain.data.clips import ClipsPlan, collate, cut_clips, draw_clips, joined
from timegrain.data.decoding import open_video
from timegrain.data.pyav_reader import PyAVReader
from timegrain.data.reencoding import Encoding
from timegrain.data.streams.known import KNOWN
from timegrain.data.transforms import Augmentation, AugmentConfig, apply_augmentation, resize_pictures
from timegrain.sampling import ClipSpec, contained

LONG, SHORT, SIZE = ClipSpec(32, 4), ClipSpec(16, 2), 224
BASE = "torchcodec exact, decoded once, cropped"


def plans(path: Path, config: AugmentConfig, rounds: int) -> list[ClipsPlan]:
    """One sample per round."""
    with open_video(path) as reader:
        info = reader.info
    rng = np.random.default_rng(0)
    return [
        draw_clips(rng, contained, info.num_frames, info.height, info.width, (LONG, SHORT), config)
        for _ in range(rounds + 1)
    ]


def ours(path: Path, plan: ClipsPlan, decoder: str = "pyav", known: bool = False) -> list[torch.Tensor]:
    """Ours; the file's packets walked through anew, or known from an earlier visit of the same worker."""
    if not known:
        KNOWN.clear()
    with open_video(path, decoder=decoder) as reader:
        return cut_clips(reader, plan, reader.num_frames, SIZE)


def peer_once(read: peers.Reader, path: Path, plan: ClipsPlan) -> list[np.ndarray]:
    """A reader asked once, for the frames of both clips."""
    union, inverse = np.unique(np.concatenate(plan.indices), return_inverse=True)
    frames = read(path, union.tolist())
    ends = np.cumsum([len(indices) for indices in plan.indices])[:-1]
    return [_cut(frames, places, plan, clip) for clip, places in enumerate(np.split(inverse, ends))]


def peer_twice(read: peers.Reader, path: Path, plan: ClipsPlan) -> list[np.ndarray]:
    """A reader asked for each clip apart, as a data set of single clips would."""
    return [
        _cut(read(path, indices.tolist()), np.arange(len(indices)), plan, clip)
        for clip, indices in enumerate(plan.indices)
    ]


def _cut(frames: np.ndarray, places: np.ndarray, plan: ClipsPlan, clip: int) -> np.ndarray:
    top, left, height, width = plan.crops[clip]
    out = np.empty((len(places), SIZE, SIZE, 3), np.uint8)
    for place, target in zip(places, out, strict=True):  # picked one by one: without a copy
        part = frames[place, top : top + height, left : left + width]
        resize_pictures(part[None], target[None], flip=plan.flips[clip])
    return out


def torchvision_pipeline(path: Path, plan: ClipsPlan) -> list[torch.Tensor]:
    """Read with torchcodec clip by clip, torchvision v2 for the rest, float32 out; the layout in which that is quickest."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1)
    return [
        torchvision_v2(decoder.get_frames_at(indices.tolist()).data, crop, flip, augmentation)
        for indices, crop, flip, augmentation in zip(
            plan.indices, plan.crops, plan.flips, plan.augmentations, strict=True
        )
    ]


def our_pipeline(path: Path, plan: ClipsPlan) -> list[torch.Tensor]:
    """Ours with all augmentations on the CPU, float32 out."""
    return [
        apply_augmentation(clip[None], Augmentation.collate([augmentation]))
        for clip, augmentation in zip(ours(path, plan), plan.augmentations, strict=True)
    ]


def decode_dropping(path: Path, plan: ClipsPlan) -> None:
    """The floor of ours: the packets that ours sends to the decoder, and nothing done with the frames."""
    KNOWN.clear()
    with PyAVReader(str(path)) as reader:
        for _ in reader._decode(np.unique(np.concatenate(plan.indices))):
            pass


def decode_dropping_and_resize(path: Path, plan: ClipsPlan, picture: np.ndarray) -> list[np.ndarray]:
    """That floor and the cutting and resizing that all methods do, of one ready picture: nothing is converted."""
    decode_dropping(path, plan)
    frames = np.broadcast_to(picture, (1, *picture.shape))
    return [_cut(frames, np.zeros(len(indices), int), plan, clip) for clip, indices in enumerate(plan.indices)]


# ---- the tables ------------------------------------------------------------------------------------------------------


def samples(work: str, path: Path, rounds: int, goal: float, store: Path | None = None) -> list[Row]:
    """Rows of every way to the two uint8 clips, each against torchcodec."""
    drawn = plans(path, AugmentConfig(), rounds)
    union = [np.unique(np.concatenate(plan.indices)).tolist() for plan in drawn]
    picture = peers.pyav(path, [0])[0]
    methods: dict[str, Callable[[int], object]] = {
        "TimeGrain": lambda number: ours(path, drawn[number]),
        "TimeGrain, a file that the worker read before": lambda number: ours(path, drawn[number], known=True),
        "floor: decoding alone, key frame to last frame": lambda number: peers.decode_only(path, union[number]),
        "floor: the same without pictures nothing depends on": lambda number: decode_dropping(path, drawn[number]),
        "floor: the same, and all methods' cutting and resizing": lambda number: decode_dropping_and_resize(
            path, drawn[number], picture
        ),
        "PyAV, once": lambda number: peer_once(peers.pyav, path, drawn[number]),
    }
    goals = {"TimeGrain": goal}
    if store is not None:
        methods["TimeGrain, frame store"] = lambda number: ours(store, drawn[number], known=True)
        goals["TimeGrain, frame store"] = 0.12
    missing = {}
    others: dict[str, tuple[str, Callable[[int], object]]] = {
        BASE: ("torchcodec", lambda number: peer_once(peers.torchcodec, path, drawn[number])),
        "torchcodec exact, decoded twice": (
            "torchcodec",
            lambda number: peer_twice(peers.torchcodec, path, drawn[number]),
        ),
        "TimeGrain, torchcodec route": ("torchcodec", lambda number: ours(path, drawn[number], "torchcodec")),
        "decord2, once": ("decord2", lambda number: peer_once(peers.decord2, path, drawn[number])),
        "OpenCV, once": ("OpenCV", lambda number: peer_once(peers.opencv, path, drawn[number])),
        "pytorchvideo EncodedVideo, once": (
            "pytorchvideo",
            lambda number: peer_once(peers.pytorchvideo, path, drawn[number]),
        ),
    }
    for name, (package, method) in others.items():
        reason = peers.why_not(package, path)
        if reason:
            missing[name] = reason
        else:
            methods[name] = method
    if BASE in missing:
        return [not_measured(work, name, missing[BASE], goals.get(name), name in goals) for name in methods]
    seconds = measure(methods, rounds)
    rows = [row(work, seconds, name, BASE, goals.get(name), is_ours=name.startswith("TimeGrain")) for name in methods]
    return rows + [not_measured(work, name, reason) for name, reason in missing.items()]


def pipelines(path: Path, rounds: int) -> list[Row]:
    """The whole way to augmented clips, against torchcodec and torchvision v2."""
    peer = "torchcodec per clip, torchvision v2"
    rows = []
    for recipe, config, goals in (
        ("all augmentations, always", ALL_ON, (0.15, 0.11)),
        ("the recipe's chances", AugmentConfig(), (None, None)),
    ):
        drawn = plans(path, config, rounds)
        works = [
            f"whole pipeline, {recipe}: {end}" for end in ("float out", "uint8 out, colour and blur on the device")
        ]
        reason = peers.why_not("torchcodec", path)
        if reason:
            rows += [
                not_measured(work, "TimeGrain", reason, goal, True) for work, goal in zip(works, goals, strict=True)
            ]
            continue
        seconds = measure(
            {
                "TimeGrain": lambda number, drawn=drawn: our_pipeline(path, drawn[number]),
                "TimeGrain to uint8": lambda number, drawn=drawn: ours(path, drawn[number]),
                peer: lambda number, drawn=drawn: torchvision_pipeline(path, drawn[number]),
            },
            rounds,
        )
        for work, method, goal in zip(works, ("TimeGrain", "TimeGrain to uint8"), goals, strict=True):
            rows.append(row(work, seconds, method, peer, goal))
    return rows


def visits(work: str, path: Path, rounds: int) -> list[Row]:
    """What a sample costs where several are drawn each time a video is decoded, beside one."""
    number_of = {"one sample a visit": 1} | {f"{number} samples a visit, each": number for number in (2, 4, 8)}
    drawn = plans(path, AugmentConfig(), 8 * (rounds + 1))

    def visit(number: int, samples: int) -> None:
        ours(path, joined(drawn[8 * number : 8 * number + samples]))

    seconds = measure(
        {name: lambda number, samples=samples: visit(number, samples) for name, samples in number_of.items()}, rounds
    )
    each = {name: [spent / number_of[name] for spent in seconds[name]] for name in seconds}
    return [row(work, each, name, "one sample a visit") for name in number_of if number_of[name] > 1]


def stages(path: Path, rounds: int) -> list[Row]:
    """Where ours spends its time; each stage beside bare decoding of the same span in the same round."""
    floor = "floor: decoding alone, key frame to last frame"
    drawn = plans(path, ALL_ON, rounds)
    spent: dict[str, list[float]] = {}

    def staged(number: int) -> None:
        KNOWN.clear()
        plan = drawn[number]
        top, left = min(c.top for c in plan.crops), min(c.left for c in plan.crops)
        crop = max(c.top + c.height for c in plan.crops), max(c.left + c.width for c in plan.crops)
        box = type(plan.crops[0])(top, left, crop[0] - top, crop[1] - left)
        where: dict[int, list[tuple[int, int]]] = {}
        for clip, indices in enumerate(plan.indices):
            for place, frame_number in enumerate(indices.tolist()):
                where.setdefault(frame_number, []).append((clip, place))
        clock = _Clock()
        with PyAVReader(str(path)) as reader:
            clock("open: find the packets and the frames")
            arrays = [np.empty((len(indices), SIZE, SIZE, 3), np.uint8) for indices in plan.indices]
            for frame_number, frame in reader._decode(np.array(sorted(where))):
                clock("decode")
                picture = reader._rgb(frame, box)
                clock("convert to RGB")
                for clip, place in where[frame_number]:
                    c = plan.crops[clip]
                    part = picture[c.top - top :, c.left - left :][: c.height, : c.width]
                    resize_pictures(part[None], arrays[clip][place, None], flip=plan.flips[clip])
                clock("cut, resize, mirror")
        clock("decode")
        clips = [torch.from_numpy(array).permute(0, 3, 1, 2) for array in arrays]
        worker._worker_info = object()  # as in a loading worker, which stacks into memory that is shared
        batch = collate([{"long": clips[0], "short": clips[1], "failures": []}])
        worker._worker_info = None
        assert batch["long"].is_shared()
        clock("hand over: stack into shared memory")
        for clip, augmentation in zip(clips, plan.augmentations, strict=True):
            still = Augmentation.collate([augmentation])
            apply_augmentation(clip[None], Augmentation(*_fields(still, blur_sigma=np.zeros(1, np.float32))))
        clock("colours, to float")
        for clip, augmentation in zip(clips, plan.augmentations, strict=True):
            sigma = np.asarray(augmentation.blur_sigma)[None]
            apply_augmentation(clip[None], Augmentation(*_fields(_NO_CHANGE, blur_sigma=sigma)))
        clock("blur, to float")
        if number:
            for name, seconds in clock.spent.items():
                spent.setdefault(name, []).append(seconds)

    union = [np.unique(np.concatenate(plan.indices)).tolist() for plan in drawn]
    seconds = measure({"stages": staged, floor: lambda number: peers.decode_only(path, union[number])}, rounds)
    seconds |= spent
    return [row("stages of ours, all augmentations", seconds, name, floor) for name in spent]


_NO_CHANGE = Augmentation.collate([Augmentation.neutral()])


def _fields(augmentation: Augmentation, **changed: np.ndarray) -> list[np.ndarray]:
    return [changed.get(name, getattr(augmentation, name)) for name in Augmentation.__dataclass_fields__]


class _Clock:
    """CPU time since the last call, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._last = time.process_time()

    def __call__(self, name: str) -> None:
        now = time.process_time()
        self.spent[name] = self.spent.get(name, 0) + now - self._last
        self._last = time.process_time()


def _say(what: str) -> None:
    print(f"  input pipeline: {what}", file=sys.stderr, flush=True)


def run(rounds: int = 7) -> list[Row]:
    """Rows for the results table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, what = media.original(folder)
        store = media.rewritten(source, folder, Encoding(kind="frames"))
        _say("the original")
        rows = samples(f"sample to uint8, {what}", source, rounds, 0.65, store)
        _say("a key frame every 12")
        gop12 = media.with_gop(source, folder / "gop12.mp4", 12)
        rows += samples("sample to uint8, the same with 12 frames per key frame (x264's defaults)", gop12, rounds, 0.80)
        _say("rewritten")
        fast = media.rewritten(source, folder, Encoding(gop=12))
        rows += samples("sample to uint8, the same rewritten by `timegrain prepare --gop 12`", fast, rounds, None)
        _say("several samples a visit")
        rows += visits(f"several samples of a video, {what}", source, rounds)
        _say("whole pipelines")
        rows += pipelines(source, rounds)
        _say("stages")
        rows += stages(source, rounds)
    return rows


if __name__ == "__main__":
    restart_with_it()
    for line in run(int(sys.argv[1]) if len(sys.argv) > 1 else 7):
        value = "" if line.value is None else f"{line.value:.3f}"
        print(f"{line.work[:60]:60} | {line.method:55} | {line.cpu_ms or 0:8.1f} | {value} {line.reached} {line.note}")
