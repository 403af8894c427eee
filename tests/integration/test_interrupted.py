"""Commands over many videos that are interrupted or killed: the same command again does the rest, to the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conftest import make_video, moving_square
from timegrain.cli import main
from timegrain.data.journal import VideoJournal
from timegrain.data.manifest import Manifest
from timegrain.models.boundary import BoundaryConfig, BoundaryDetector, save_detector
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights

pytestmark = pytest.mark.multiprocess

NUM_VIDEOS = 6  # one of them broken
BROKEN = "v2.mp4"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Path:
    """Videos, weights, a manifest and shards, that the test may change."""
    return shutil.copytree(made, tmp_path_factory.mktemp("own") / "folder")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for index in range(NUM_VIDEOS):
        make_video(root / "videos" / f"v{index}.mp4", moving_square(30 + 3 * index, 32, 32, seed=index))
    assert main(["manifest", "scan", str(root / "videos"), "--out", str(root / "m.parquet"), "--workers=1"]) == 0
    for index in range(3):
        with tarfile.open(root / f"s{index}.tar", "w") as shard:
            shard.add(root / "videos" / f"v{index}.mp4", "a.mp4")
    (root / "videos" / BROKEN).write_bytes(b"no video any more")
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoder = VideoEncoder(EncoderConfig("r3d_tiny", heads=(), clip_num_frames=8, clip_stride=2, crop_size=16))
        save_weights(encoder, root / f"encoder{seed}.safetensors")
    picking = {"rule": "peaks", "threshold": 0.1, "gap_seconds": 0.1}
    config = BoundaryConfig("window", "r3d_tiny", num_frames=4, stride=2, every=6, crop_size=16, picking=picking)
    save_detector(BoundaryDetector(config), root / "detector.safetensors")
    return root


@dataclass(frozen=True)
class Job:
    """A command in a folder, what it writes, and how many pieces it has."""

    words: tuple[str, ...]
    out: str
    num_pieces: int = NUM_VIDEOS
    names_broken: bool = True

    def arguments(self, *more: str) -> list[str]:
        return [*self.words, f"--out={self.out}", *more]

    @property
    def journal(self) -> Path:
        return Path(f".{self.out}.done.jsonl")


FIND = Job(("boundaries", "find", "videos", "--weights=encoder0.safetensors", "--device=cpu"), "b.csv")
CHANGE = Job(("floors", "change", "videos", "--workers=1", "--time-limit=600"), "c.pkl")
CUTS = Job(("floors", "scenedetect", "videos", "--workers=1", "--time-limit=600"), "s.json")
JOBS = {
    "find": FIND,
    "find with a detector": Job(
        ("boundaries", "find", "videos", "--weights=detector.safetensors", "--device=cpu"), "b.json"
    ),
    "change": CHANGE,
    "check": Job(("manifest", "check", "m.parquet", "--workers=1", "--time-limit=600"), "checked.parquet"),
    "shards": Job(
        ("manifest", "shards", "s0.tar", "s1.tar", "s2.tar", "--workers=1", "--time-limit=600"),
        "t.parquet",
        3,
        names_broken=False,
    ),
}


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest) -> Job:
    return JOBS[request.param]


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@contextmanager
def whenever_one_is_done(happens: Callable[[VideoJournal, int], None]) -> Iterator[None]:
    """Let something happen as soon as a result is kept; it is told how many this process has kept."""
    finish, kept = VideoJournal.finish, []

    def finish_and_more(self: VideoJournal, *arguments: object) -> None:
        finish(self, *arguments)
        kept.append(arguments)
        happens(self, len(kept))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoJournal, "finish", finish_and_more)
        yield


def interrupt(arguments: list[str], count: int) -> None:
    """Run a command and interrupt it when so many results are kept."""

    def stop(_: VideoJournal, number: int) -> None:
        if number == count:
            raise KeyboardInterrupt

    with whenever_one_is_done(stop):
        assert main(arguments) == 130


def files() -> list[Path]:
    return sorted(Path().rglob("*"))


def unbroken(job: Job, capsys: pytest.CaptureFixture[str]) -> tuple[bytes, str, list[Path]]:
    """What the command writes and says when nothing interrupts it; its output is removed again."""
    assert main(job.arguments("--json")) == 0
    content, said = Path(job.out).read_bytes(), capsys.readouterr()
    assert ("were done before" in said.err) is False
    there = files()
    Path(job.out).unlink()
    return content, said.out, there


def test_an_interrupted_command_does_the_rest(job: Job, capsys):
    content, said, there = unbroken(job, capsys)
    interrupt(job.arguments(), 2)
    assert (
        "interrupted; what was finished is kept, and the same command goes on with the rest" in capsys.readouterr().err
    )
    assert not Path(job.out).exists()
    with job.journal.open("a") as journal:
        journal.write('{"key": "the line that was being wri')  # and the power went
    kept = []
    with whenever_one_is_done(lambda _, number: kept.append(number)):
        assert main(job.arguments("--json")) == 0
    printed = capsys.readouterr()
    assert f"2 of {job.num_pieces}" in printed.err
    assert "were done before" in printed.err
    assert len(kept) == job.num_pieces - 2 - job.names_broken
    assert Path(job.out).read_bytes() == content
    assert printed.out == said
    assert (BROKEN.removesuffix(".mp4") in printed.out + printed.err) or not job.names_broken
    assert files() == there


def run_and_be_killed(folder: Path, arguments: list[str], cut: int) -> None:
    """The command in this process, which is killed when two results are kept, the last ``cut`` bytes of them not."""
    os.chdir(folder)

    def kill(journal: VideoJournal, number: int) -> None:
        if number == 2:
            os.truncate(journal.path, journal.path.stat().st_size - cut)
            os.kill(os.getpid(), signal.SIGKILL)

    with whenever_one_is_done(kill):
        main(arguments)


@pytest.mark.parametrize(("name", "cut"), [("find", 0), ("check", 20)])
def test_a_killed_command_does_the_rest(name: str, cut: int, folder: Path, capsys):
    job = JOBS[name]
    content, said, there = unbroken(job, capsys)
    arguments = (folder, job.arguments(), cut)
    process = multiprocessing.get_context("spawn").Process(target=run_and_be_killed, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not Path(job.out).exists()
    assert main(job.arguments("--json")) == 0
    printed = capsys.readouterr()
    assert f"{1 if cut else 2} of {job.num_pieces} videos were done before" in printed.err
    assert printed.out == said
    assert Path(job.out).read_bytes() == content
    assert files() == there


@pytest.mark.parametrize(
    ("job", "other"),
    [
        (FIND, "--prominence=0.5"),
        (FIND, "--weights=encoder1.safetensors"),
        (CHANGE, "--rate=5"),
        (CUTS, "--unit=frames"),
        (JOBS["check"], "--seed=3"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.words[1],
)
def test_other_settings_and_weights_begin_anew(job: Job, other: str, capsys):
    assert main(job.arguments(other)) == 0
    content = Path(job.out).read_bytes()
    Path(job.out).unlink()
    interrupt(job.arguments(), 3)
    capsys.readouterr()
    assert main(job.arguments(other)) == 0
    assert "of other videos, settings or weights: nothing in it can be used" in capsys.readouterr().err
    assert Path(job.out).read_bytes() == content
    assert not job.journal.exists()


@pytest.mark.parametrize("more", ["--batch-size=1", "--workers=1"])
def test_what_changes_nothing_goes_on(more: str, capsys):
    job = JOBS["find with a detector"]
    interrupt(job.arguments(), 3)
    assert main(job.arguments(more)) == 0
    assert "3 of 6 videos were done before" in capsys.readouterr().err


def test_a_changed_and_a_mended_video_are_looked_at_again(capsys):
    interrupt(FIND.arguments(), 3)
    make_video(Path("videos/v0.mp4"), moving_square(50, 32, 32, seed=9))
    make_video(Path("videos") / BROKEN, moving_square(50, 32, 32, seed=8))
    make_video(Path("videos/w.mp4"), moving_square(50, 32, 32, seed=7))
    capsys.readouterr()
    assert main(FIND.arguments("--json")) == 0
    printed = capsys.readouterr()
    assert "2 of 7 videos were done before" in printed.err
    assert json.loads(printed.out)["broken"] == {}
    content = Path(FIND.out).read_bytes()
    Path(FIND.out).unlink()
    assert main(FIND.arguments()) == 0
    assert Path(FIND.out).read_bytes() == content


def test_check_looks_again_where_training_would_read_other_frames(capsys):
    """The frames that training draws depend on a video's row."""
    job = JOBS["check"]
    interrupt(job.arguments(), 3)
    everything = Manifest.open("m.parquet")
    Manifest.from_rows(
        [{name: getattr(row, name) for name in ("path", "num_frames", "fps", "duration_seconds", "width", "height")}
         for row in reversed(list(everything))], Path()
    ).write("m.parquet")  # fmt: skip
    capsys.readouterr()
    assert main(job.arguments()) == 0
    assert "of other videos, settings or weights" in capsys.readouterr().err


def test_the_manifest_itself_may_be_checked_and_replaced(capsys):
    words = ["manifest", "check", "m.parquet", "--workers=1", "--time-limit=600"]
    interrupt(words, 3)
    assert main(words) == 0
    assert "3 of 6 videos were done before" in capsys.readouterr().err
    assert [Path(row.path).name for row in Manifest.open("m.parquet").select(usable=False) if row.error] == [BROKEN]
    assert not list(Path().glob(".m.parquet*"))


def test_embed_says_how_much_was_done(capsys):
    words = ["embed", "videos", "--weights=encoder0.safetensors", "--device=cpu", "--out=f.parquet"]
    assert main([*words, "--out=g.parquet"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        from timegrain import feature_files

        written, to_table = [], feature_files.to_table

        def interrupted(video: object) -> object:
            written.append(video)
            if len(written) == 3:
                raise KeyboardInterrupt
            return to_table(video)

        patch.setattr(feature_files, "to_table", interrupted)
        assert main(words) == 130
    assert "interrupted; what was finished is kept, and the same command goes on" in capsys.readouterr().err
    assert main(words) == 0
    assert "2 of 6 videos were done before" in capsys.readouterr().err
    assert Path("f.parquet").read_bytes() == Path("g.parquet").read_bytes()
    assert Path("f.broken.csv").read_text() == Path("g.broken.csv").read_text()
