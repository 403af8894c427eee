"""TimeGrain: self-supervised video features whose temporal granularity you choose.

The public names load their room when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "embed", "find_boundaries", "load", "self_similarity"]

_PUBLIC = {
    "load": "timegrain.inference",
    "embed": "timegrain.inference",
    "find_boundaries": "timegrain.boundary_finding",
    "self_similarity": "timegrain.inference",
}

if TYPE_CHECKING:
    from timegrain.boundary_finding import find_boundaries
    from timegrain.inference import embed, load, self_similarity


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'timegrain' has no attribute {name!r}")
