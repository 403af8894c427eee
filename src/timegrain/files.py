"""Output files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        reason = _why_not_written(error, path.parent)
        if reason is None:
            raise
        raise OSError(
            f"{path} could not be written: {reason}. What was there before is untouched; once there is room, the same "
            "command goes on"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def _why_not_written(error: BaseException, folder: Path) -> str | None:
    """Whether an error means that the disk took no more; libraries in C++ and Rust give it other types and words."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _FULL:
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
