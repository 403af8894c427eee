"""Output is whole or not there, and a disk that takes no more is one clear message, whatever library was writing."""

from __future__ import annotations

import errno
import glob
import os
import subprocess
import sys
from pathlib import Path

import pytest

from timegrain import checkpoints, files
from timegrain.files import atomic_path


def test_an_error_leaves_the_older_file_and_no_other(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:1] . PytorchStreamWriter failed writing file data/1"),
    ],
    ids=["Python", "Rust", "C++"],
)
def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path: Path, error: Exception):
    path = tmp_path / "w.safetensors"
    with pytest.raises(OSError, match=rf"{path} could not be written: .*untouched"), atomic_path(path):
        raise error


def test_an_error_of_the_content_stays_what_it_is(tmp_path: Path):
    with pytest.raises(ValueError, match="no number"), atomic_path(tmp_path / "a"):
        raise ValueError("no number")


def test_a_file_that_may_not_be_read_is_not_taken_for_the_one_that_is_written(tmp_path: Path):
    reason = PermissionError(errno.EACCES, "Permission denied", "/videos/v.mp4")
    with pytest.raises(ValueError, match=r"v\.mp4 cannot be read"), atomic_path(tmp_path / "a"):
        raise ValueError("v.mp4 cannot be read") from reason
    with pytest.raises(OSError, match="a could not be written: Permission denied"), atomic_path(tmp_path / "a") as file:
        raise PermissionError(errno.EACCES, "Permission denied", file)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"a\.txt cannot be written"), atomic_path(tmp_path / "file" / "a.txt"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files")
@pytest.mark.parametrize("writer", ["torch", "safetensors", "parquet"])
def test_writers_that_meet_a_limit(writer: str, tmp_path: Path):
    code = """
import resource, sys, torch
from timegrain.files import atomic_path
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
with atomic_path(sys.argv[2]) as path:
    if sys.argv[1] == "torch":
        with open(path, "wb") as file:
            torch.save({"a": torch.randn(50_000)}, file)
    elif sys.argv[1] == "safetensors":
        from safetensors.torch import save_file
        save_file({"a": torch.randn(50_000)}, path)
    else:
        import pyarrow, pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.table({"a": torch.randn(50_000).numpy()}), path)
"""
    target = tmp_path / "out.bin"
    done = subprocess.run([sys.executable, "-c", code, writer, target], capture_output=True, text=True, check=False)
    assert f"OSError: {target} could not be written" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_who_is_alone_in_a_folder_finds_nothing_half_written(monkeypatch, tmp_path: Path):
    """Also where who was killed is still listed as running: its lock goes before it does."""
    with files.atomic_path(tmp_path / "made.npy") as mine:
        mine.touch()
        listed = tmp_path / mine.name.replace(f".{os.getpid()}@", f".{os.getppid()}@")
    elsewhere = tmp_path / f".made.{os.getppid()}@another machine.part.npy"
    for path in (listed, elsewhere):
        path.touch()
    files.remove_leftovers(tmp_path)
    assert listed.exists()  # it may be writing

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as without_locks:
        without_locks.setattr(files.fcntl, "flock", no_locks)
        with files.alone_in(tmp_path):
            assert listed.exists()
    with files.alone_in(tmp_path):
        assert not listed.exists()
        assert elsewhere.exists()


@pytest.mark.parametrize("stem", ["features", "a[1]", "b.c"])
def test_what_a_killed_process_left_of_one_file_goes(stem: str, tmp_path: Path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (stem, "other"):
        (tmp_path / f".{name}.{dead.pid}@{files._NODE}.part.parquet").touch()
    files.remove_leftovers(tmp_path, glob.escape(stem))
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["other"]


def test_a_checkpoint_that_fails_without_a_word_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoints.torch, "load", exhausted)
    with pytest.raises(ValueError, match=r"the checkpoint .*last\.ckpt cannot be read \(MemoryError\)"):
        checkpoints.read_checkpoint(tmp_path / "last.ckpt")
