"""Output files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

if sys.platform != "win32":
    import fcntl


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` when the block ends without an error.

    The folder is made if needed. On an error the temporary file is removed and an older ``path`` stays as it was,
    so a full disk or a kill never leaves half a file under the final name.

    Args:
        path: The file to write.

    Yields:
        The name to write to; it keeps the ending of ``path``.

    Raises:
        OSError: The disk is full or the folder cannot be written to; the message says so whatever library was writing.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    temporary = path.with_name(f".{path.stem}.{os.getpid()}@{_NODE}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        reason = _why_not_written(error, path.parent)
        if reason is None:
            raise
        raise _unwritten(path, reason) from error
    finally:
        with suppress(OSError):  # a read-only disk refuses this even where there is nothing to remove
            temporary.unlink(missing_ok=True)


def _unwritten(path: Path, reason: str) -> OSError:
    return OSError(
        f"{path} could not be written: {reason}. What was there before is untouched; once there is room, the same "
        "command goes on"
    )


@contextmanager
def appended(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file, open to add lines to its end.

    Yields:
        The file.

    Raises:
        OSError: The disk is full or the file cannot be written to. Part of a line may be there then.
    """
    path = Path(path)
    with explained(path), path.open("a", newline="") as file:
        yield file


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say of an error in the block that the disk took no more, where it means that.

    Args:
        path: The file that is opened or written to in the block.

    Raises:
        OSError: The block's own, in words.
    """
    try:
        yield
    except OSError as error:
        reason = _why_not_written(error, path.parent)
        if reason is None:
            raise
        raise _unwritten(path, reason) from error


def remove_leftovers(folder: str | os.PathLike[str], stem: str = "*", *, alone: bool = False) -> None:
    """Remove the temporary files of processes that were killed while they wrote into a folder.

    Those of processes that still run stay. Of other machines, whose processes cannot be seen from here, those go that
    nobody has written to for a day.

    Args:
        folder: Where to look, without its subfolders; it need not exist.
        stem: Of the files that were to be written, a pattern.
        alone: No other process of this machine writes here, so all of this machine's go. A killed process lets its lock
            go before it is gone from the list of those that run.
    """
    for path in Path(folder).glob(f".{stem}.*.part*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None:
            continue
        pid, node = int(found[1]), found[2]
        if node == _NODE:
            is_left = alone or pid == os.getpid() or not _runs(pid)
        else:
            is_left = path.exists() and time.time() - path.stat().st_mtime > _DAY
        if is_left:
            with suppress(OSError):  # another process was faster, or the folder cannot be written to: said later
                path.unlink()


_TEMPORARY = re.compile(r"\..*\.(\d+)@(.*)\.part(\..*)?")
_NODE = platform.node()[:16]
_DAY = 24 * 3600


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


@contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """One process at a time, of all that name the same folder, is inside the block; others wait and say so.

    For what many processes need and one makes, and must look again once it is inside. What a killed one left half
    written is gone by then. The system lets go when a process ends, however it ends. Where a system knows no locks nobody
    waits: files are whole there too, but made twice.

    Args:
        folder: Made if needed.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise OSError(f"{folder} cannot be written to: {error.strerror or error}") from error
    with lock:
        remove_leftovers(folder, alone=_wait_for(lock, folder))
        yield


def _wait_for(lock: TextIO, folder: Path) -> bool:
    """Take a lock; whether this system has locks."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another process is filling {folder}: waiting for it", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        return False
    return True


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def _is_in(folder: Path, file: object) -> bool:
    """Whether an error is of a file in the folder, or names none; a video that may not be read is another matter."""
    return not isinstance(file, str | os.PathLike) or Path(file).absolute().parent == folder.absolute()


def _why_not_written(error: BaseException, folder: Path) -> str | None:
    """Whether an error means that the disk took no more; libraries in C++ and Rust give it other types and words."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _FULL and _is_in(folder, link.filename):
            return os.strerror(link.errno)
        found = re.search(r"os error (\d+)", str(link))
        if found and int(found[1]) in _FULL:
            return os.strerror(int(found[1]))
        link = link.__cause__ or link.__context__
    # torch's writer says only that writing failed.
    if "file write failed" in str(error) or "failed writing file" in str(error):
        free = shutil.disk_usage(folder).free
        return f"the disk took no more ({free / 1e6:,.1f} MB free)"
    return None
