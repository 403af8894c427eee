"""``timegrain doctor``: whether this machine and environment can train and embed, and what to do where not."""

from __future__ import annotations

import importlib
import json as json_module
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement

from timegrain.machine import core_limit, memory_bytes, num_cores, present_cores, present_memory_bytes

_LIBRARIES = ("torch", "torchvision", "lightning", "av", "numpy", "pyarrow", "safetensors", "jsonargparse")
_MALICIOUS = {("lightning", "2.6.2"), ("lightning", "2.6.3")}
_MIN_FREE = 5e9  # bytes: below, a frame cache or checkpoints soon fill the disk
_BATCH = 32 * 48 * 3 * 224 * 224  # bytes of a batch of the default size: 32 videos, 32 + 16 frames, 224 pixels
_AHEAD = 2  # batches that each worker has ready
_SHARED = Path("/dev/shm")  # where workers put batches for the training process, on Linux
_MIN_OPEN_FILES = 1024


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: What.
        state: ok, warning (works, but not as well as it could) or problem (something will fail).
        found: What there is.
        advice: What to do about it; empty where nothing is to be done.
    """

    name: str
    state: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requires(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []


def _libraries() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    for name in _LIBRARIES:
        version = _version(name)
        if version is None:
            yield Finding(name, "problem", "not installed", f"pip install {name}")
            continue
        if (name, version) in _MALICIOUS:  # not even imported
            advice = "remove it, change this machine's credentials, and install lightning>=2.6.4"
            yield Finding(name, "problem", f"{version}: this release on PyPI was malicious", advice)
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken library may raise anything; that is what is reported
            first = (str(error).splitlines() or [type(error).__name__])[0]
            hint = (
                "torch and torchvision belong together: install both in one pip command, as constraints.txt pins them"
            )
            again = hint if name.startswith("torch") else f"pip install --force-reinstall {name}"
            yield Finding(name, "problem", f"{version}, but it cannot be imported: {first}", again)
        else:
            yield Finding(name, "ok", version)
    torch_version = _version("torch")
    for wanted in map(Requirement, _requires("torchvision")):
        if wanted.name == "torch" and torch_version and not wanted.specifier.contains(torch_version, prereleases=True):
            advice = "install both in one pip command, as constraints.txt pins them"
            found = f"torchvision is for {wanted}, not {torch_version}"
            yield Finding("torch and torchvision", "problem", found, advice)
    kinds = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
    cv2 = [name for name in kinds if _version(name)]
    if len(cv2) > 1:
        advice = f"pip uninstall {' '.join(cv2)}; then pip install opencv-python-headless"
        yield Finding("opencv", "problem", f"{' and '.join(cv2)} overwrite each other's files", advice)
    else:
        try:
            yield Finding("opencv", "ok", str(importlib.import_module("cv2").__version__))
        except Exception as error:
            yield Finding("opencv", "problem", str(error).splitlines()[0], "pip install opencv-python-headless numpy")


def _decoders(video: Path | None) -> Iterator[Finding]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = video or _small_video(Path(folder) / "doctor.mp4")
            from timegrain.data.decoding import open_video

            with open_video(path) as reader:
                frame = reader.frames([0])[0]
            yield Finding("a decoded frame", "ok", f"{video or 'a video made just now'}: {tuple(frame.shape)}")
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        advice = (
            "the file may be broken: `timegrain manifest check` says more"
            if video
            else "pip install --force-reinstall av"
        )
        yield Finding("a decoded frame", "problem", first, advice)
    if _version("torchcodec") is None:
        yield Finding("torchcodec", "ok", "not installed (an extra; PyAV decodes everything)")
        return
    try:
        importlib.import_module("torchcodec.decoders")
    except Exception as error:
        reason = (str(error).splitlines() or ["cannot be imported"])[0]
        if shutil.which("ffmpeg") is None:
            reason += "; there is no FFmpeg on this system"
            advice = "install FFmpeg with its shared libraries (apt install ffmpeg; conda install ffmpeg)"
        else:
            advice = "it needs FFmpeg's shared libraries, versions 4 to 9, and the torch that it was made for"
        yield Finding("torchcodec", "warning", reason, f"{advice}; or pip uninstall torchcodec: PyAV serves")
    else:
        yield Finding("torchcodec", "ok", str(_version("torchcodec")))


def _small_video(path: Path) -> Path:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in (40, 200):
            picture = np.full((48, 64, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _devices() -> Iterator[Finding]:
    cores, present, limit = num_cores(), present_cores(), core_limit()
    if limit is not None and limit < present:
        found = f"limited to {limit:g} of {present} cores by the container"
        more = "for more, docker run --cpus, or the cluster's limit"
        if "OMP_NUM_THREADS" in os.environ:
            yield Finding("cores", "ok", found, more)
        else:
            advice = f"export OMP_NUM_THREADS={cores}: libraries start a thread for each of the {present}; {more}"
            yield Finding("cores", "warning", found, advice)
    elif cores > 8 and "OMP_NUM_THREADS" not in os.environ:
        advice = "export OMP_NUM_THREADS=1 where many processes share the machine: each may start a thread per core"
        yield Finding("cores", "warning", f"{cores}, and OMP_NUM_THREADS is not set", advice)
    else:
        yield Finding("cores", "ok", str(cores))
    try:
        import torch
    except Exception:  # reported above, with its reason
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use --run.precision 16-mixed"
        yield Finding(f"GPU {index}", "ok", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {half}")
    if torch.cuda.device_count():
        return
    if torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "Apple's (mps)")
    elif shutil.which("nvidia-smi"):
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a build for CPUs"
        advice = "install the torch whose CUDA fits `nvidia-smi`; check CUDA_VISIBLE_DEVICES"
        yield Finding("GPU", "problem", f"there is nvidia-smi, but torch sees no GPU; it {built}", advice)
    else:
        yield Finding("GPU", "ok", "none; small networks (r3d_tiny) train on the CPU")


def _num_workers(asked: int | None) -> int:
    return asked if asked is not None else num_cores() - 1


def _workers(asked: int | None) -> Iterator[Finding]:
    """Whether so many loading processes suit the cores, their threads and the open files."""
    cores, workers = num_cores(), _num_workers(asked)
    said = f"{workers}{'' if asked is not None else ' (what training takes here)'}, {cores} cores"
    if workers > cores:
        advice = f"--data.workers {cores} at most: one process a core; more cost memory and make nothing faster"
        yield Finding("workers", "warning", said, advice)
    else:
        yield Finding("workers", "ok", said)
    text = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(text) if text.isdigit() else 0
    if threads > 1 and threads * (workers + 1) > cores:
        found = (
            f"OMP_NUM_THREADS is {threads}: {workers} workers and training may start {threads * (workers + 1)} threads"
        )
        yield Finding("threads", "warning", found, f"export OMP_NUM_THREADS=1; there are {cores} cores")
    try:
        import resource
    except ImportError:  # not on Windows
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 < most < _MIN_OPEN_FILES:
        advice = "ulimit -n 65536: every batch that a worker hands over is some open files"
        yield Finding("open files", "warning", f"at most {most} at a time", advice)


def _memory(asked: int | None) -> Iterator[Finding]:
    """Whether the batches that wait for training fit in memory, and in the part of it that processes share."""
    workers, memory, present = _num_workers(asked), memory_bytes(), present_memory_bytes()
    needed = (_AHEAD * workers + 1) * _BATCH
    take = f"{workers} workers with batches of 32 videos of the paper's size take up to {needed / 1e9:.1f} GB of it"
    if memory < float("inf"):
        limited = f"limited to {memory / 1e9:.1f} of {present / 1e9:.1f} GB by the container"
        found = limited if memory < present else f"{memory / 1e9:.1f} GB"
        more = "docker run --memory, or the cluster's limit, or " if memory < present else ""
        advice = f"{take}, beside the processes themselves: {more}--data.workers {_fitting(memory)}"
        is_short = workers > 0 and needed > memory
        yield Finding("memory", "warning" if is_short else "ok", found, advice if is_short else "")
    if _SHARED.is_dir() and workers:
        usage = shutil.disk_usage(_SHARED)
        found = f"{_SHARED} has {usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free"
        if usage.free < needed:
            size = max(1, round(1.2 * needed / 1e9))
            advice = f"{take}: docker run --shm-size={size}g (or --ipc=host), or --data.workers {_fitting(usage.free)}"
            yield Finding("shared memory", "warning", found, advice)
        else:
            yield Finding("shared memory", "ok", found)


def _fitting(space: float) -> int:
    """How many workers' batches go into so many bytes."""
    return max(0, int((space / _BATCH - 1) / _AHEAD))


def _folder(folder: Path) -> Iterator[Finding]:
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        advice = "choose a folder that can be written to: --run.out, --data.cache_folder"
        yield Finding("folder", "problem", f"{folder} cannot be written to: {error.strerror}", advice)
        return
    found = f"{folder}: {free / 1e9:,.1f} GB free"
    if free < _MIN_FREE:
        yield Finding(
            "folder", "warning", found, "checkpoints and cached frames soon fill it: make room or use another"
        )
    else:
        yield Finding("folder", "ok", found)


def examine(video: Path | None, folder: Path, workers: int | None = None) -> list[Finding]:
    """Look at everything; what is broken is a finding, never an error."""
    looks: list[Callable[[], Iterator[Finding]]] = [
        _libraries,
        lambda: _decoders(video),
        _devices,
        lambda: _workers(workers),
        lambda: _memory(workers),
        lambda: _folder(folder),
    ]
    return [finding for look in looks for finding in look()]


def doctor(
    *, video: Path | None = None, folder: Path = Path("."), workers: int | None = None, json: bool = False
) -> None:
    """Look at versions, decoders, devices, workers, memory and disk, and say what to do where something is wrong.

    Ends with exit code 0 if training could run here, warnings or not, and with 1 if a problem was found.

    Examples::

        timegrain doctor
        timegrain doctor --video a.mp4 --folder runs --json
        timegrain doctor --workers 16

    Args:
        video: Decode a frame of this file instead of a video made for the purpose.
        folder: Where runs or cached frames shall go; looked at for free space and whether it can be written to.
        workers: Loading processes that training shall have (`--data.workers`); by default one a core but one.
        json: Print one JSON object instead of text.

    Raises:
        SystemExit: With 1, if there is a problem.
    """
    if workers is not None and workers < 0:
        raise ValueError(f"--workers must be at least 0, got {workers}")
    findings = examine(video, folder, workers)
    problems = sum(finding.state == "problem" for finding in findings)
    if json:
        result: dict[str, Any] = {"problems": problems, "findings": [finding._asdict() for finding in findings]}
        print(json_module.dumps(result, indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.state:<8} {finding.name:<{width}}  {finding.found}")
            if finding.advice:
                print(f"{'':<8} {'':<{width}}  -> {finding.advice}")
        print(f"\n{problems} problem{'s' if problems != 1 else ''} found")
    if problems:
        raise SystemExit(1)
