"""Let torchcodec use the FFmpeg that PyAV carries, so that both decode with the same code, and no other is needed.

The wheel of PyAV brings FFmpeg's libraries under names of its own; torchcodec looks for the usual ones. A folder of links
under the usual names, given to the loader before the process starts, brings the two together. Where that fails torchcodec
falls back on the system's FFmpeg, and the tables say which one it was.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path

_MARK = "TIMEGRAIN_BENCH_FFMPEG"


def restart_with_it() -> None:
    """Start this program again, once, with the loader's path set. Does nothing where PyAV carries no libraries."""
    if _MARK in os.environ or not sys.platform.startswith("linux"):
        return
    folder = Path(tempfile.mkdtemp(prefix="timegrain-ffmpeg-"))
    for file in metadata.files("av") or []:
        found = re.fullmatch(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+\.so\.(\d+)[.\d]*", file.name)
        if found:
            (folder / f"{found[1]}.so.{found[2]}").symlink_to(Path(file.locate()).resolve())
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    os.environ.update({_MARK: str(folder), "LD_LIBRARY_PATH": path})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
