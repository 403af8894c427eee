"""Which code, versions and machine a number came from; every run and every result carries it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from timegrain.data.location import masked

_PACKAGES = ("timegrain", "torch", "torchvision", "lightning", "av", "numpy", "pyarrow", "opencv-python-headless")


def provenance() -> dict[str, Any]:
    """What was typed (of URLs no password), the commit, versions of the libraries that decide numbers, and the machine.

    Returns:
        ``command``, ``git`` (the commit, ``-dirty`` with uncommitted changes, None outside a checkout), ``python``,
        ``versions`` (None for what is not installed by that name) and ``machine``; JSON values only.
    """
    import torch

    return {
        "command": [masked(word) for word in sys.argv],
        "git": _commit(Path(__file__).parent),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH, or OpenCV by another name
        return None


def _commit(folder: Path) -> str | None:
    if shutil.which("git") is None:
        return None
    # A copy in site-packages may lie inside somebody else's repository: ask whether git knows this very file.
    known = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
    describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    if subprocess.run(known, capture_output=True, check=False).returncode:
        return None
    return subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() or None
