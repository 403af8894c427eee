"""What this process has found out about files before, so that a loading worker walks through the packets of each once."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable

from timegrain.data.streams.index import PacketIndex

Key = tuple[str, int, int, int, int]
_MOST_PACKETS = 400_000  # of all files together, about 25 MB: 1,300 videos of 10 seconds


_SETTLED_NS = 2_000_000_000  # a file that changed just now may change again without its time of change telling


class KnownIndexes:
    """Packet indexes of the files that were read last.

    Args:
        most_packets: How many packets of all files are remembered; those of the files not asked for longest go first.
    """

    def __init__(self, most_packets: int = _MOST_PACKETS) -> None:
        self._most_packets, self._num_packets = most_packets, 0
        self._indexes: OrderedDict[Key, PacketIndex] = OrderedDict()

    def get(self, path: str, walk: Callable[[], PacketIndex], facts: os.stat_result | None = None) -> PacketIndex:
        """The index of a file, by ``walk`` where the very same file is not known: by place, size and time of change.

        Args:
            path: The file.
            walk: Finds the index.
            facts: Of the file that is open; those of the one at ``path`` otherwise.
        """
        path = os.path.abspath(path)
        try:
            facts = facts or os.stat(path)
        except OSError:  # gone since it was opened
            return walk()
        key = path, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
        index = self._indexes.pop(key, None)
        if index is not None:
            self._indexes[key] = index  # the youngest now
            return index
        index = walk()
        if time.time_ns() - facts.st_mtime_ns < _SETTLED_NS:
            return index
        if key not in self._indexes:  # another thread may have been quicker
            self._num_packets += len(index.ticks)
        self._indexes[key] = index
        while self._indexes and self._num_packets > self._most_packets:
            _, oldest = self._indexes.popitem(last=False)
            self._num_packets -= len(oldest.ticks)
        return index

    def clear(self) -> None:
        """Forget all."""
        self._indexes.clear()
        self._num_packets = 0


KNOWN = KnownIndexes()
