"""Files whose packets a process has walked through before: the same frames, and no file taken for another."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import make_video, moving_square
from timegrain.data.decoding import open_video
from timegrain.data.streams import source
from timegrain.data.streams.known import KnownIndexes


def settled(path: Path, seconds: float = 60) -> Path:
    """The file, as if it had been written so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are walked through, or of which the list of packets is read, with nothing known at first."""
    monkeypatch.setattr(source, "KNOWN", KnownIndexes(most_packets=100))
    walked: list[str] = []
    walk, index_of = source.PacketSource._walk, source.index_of

    def counted(self: source.PacketSource) -> object:
        walked.append(Path(self.path).name)
        return walk(self)

    def counted_list(self: source.PacketSource, *args: object) -> object:
        index = index_of(*args)
        if index is not None:
            walked.append(Path(self.path).name)
        return index

    monkeypatch.setattr(source.PacketSource, "_walk", counted)
    look = source.PacketSource._look

    def looking(self: source.PacketSource) -> object:
        monkeypatch.setattr(source, "index_of", lambda *args: counted_list(self, *args))
        return look(self)

    monkeypatch.setattr(source.PacketSource, "_look", looking)
    return walked


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264")]
)
def test_a_known_file_gives_the_same_frames(tmp_path: Path, walks: list[str], name: str, codec: str) -> None:
    path = settled(make_video(tmp_path / name, moving_square(40), codec=codec, options={"g": "10"}))
    with open_video(path) as reader:
        frames = reader.frames(range(40)).clone()
    for wanted in ([0], [39], [17, 3, 25], [5, 6, 7], list(range(40))):
        with open_video(path) as reader:
            assert reader.num_frames == 40
            np.testing.assert_array_equal(reader.frames(wanted), frames[wanted])
    assert walks == [name]


def test_a_file_that_changed_is_walked_again(tmp_path: Path, walks: list[str]) -> None:
    path = make_video(tmp_path / "a.mp4", moving_square(20))
    for length in (20, 12):
        make_video(tmp_path / "other.mp4", moving_square(length))
        shutil.copy(tmp_path / "other.mp4", path)
        settled(path, 60 + length)
        with open_video(path) as reader:
            assert reader.num_frames == length
    assert walks == ["a.mp4"] * 2


def test_a_file_written_just_now_is_not_relied_on(tmp_path: Path, walks: list[str]) -> None:
    path = make_video(tmp_path / "a.mp4", moving_square(20))
    for _ in range(2):
        open_video(path).close()
    assert walks == ["a.mp4"] * 2


def test_the_oldest_files_are_forgotten(tmp_path: Path, walks: list[str]) -> None:
    for name in "abc":
        settled(make_video(tmp_path / f"{name}.mp4", moving_square(40)))  # 40 packets each, 100 are remembered
    for name in ("a", "b", "a", "c", "a", "b"):
        open_video(tmp_path / f"{name}.mp4").close()
    assert walks == ["a.mp4", "b.mp4", "c.mp4", "b.mp4"]


def test_nothing_is_known_of_a_broken_file(tmp_path: Path, walks: list[str]) -> None:
    whole = make_video(tmp_path / "whole.mkv", moving_square(20)).read_bytes()
    (tmp_path / "a.mkv").write_bytes(whole[: len(whole) // 3])
    settled(tmp_path / "a.mkv")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a\.mkv"), open_video(tmp_path / "a.mkv") as reader:
            reader.frames([19])
