"""One progress line for everything that takes longer than a moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress line (count, rate, time left) on standard error.

    Args:
        items: What to iterate over.
        description: The words before the bar.
        total: How many items there are, when ``items`` has no length.

    Yields:
        The items, unchanged.
    """
    from tqdm import tqdm

    yield from tqdm(items, desc=description, total=total, mininterval=0.5, dynamic_ncols=True)
