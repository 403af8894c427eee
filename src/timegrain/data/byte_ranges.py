"""Files that need not be there: a part of a local file, or of what is behind a URL, read where and when it is needed.

Nothing is unpacked and nothing is downloaded as a whole but the video itself: a member of a shard is a range of bytes.
Behind a URL, blocks are read ahead and kept, so that a decoder's jumps cost few requests: one for a video of up to 8 MB,
and one per 8 MB of a larger one that is read through. A connection that breaks is taken up where it broke.
"""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from typing import Any

from timegrain.data.byte_access import Unreachable, access
from timegrain.data.location import Location
from timegrain.data.tar_index import BLOCK as TAR_BLOCK
from timegrain.data.tar_index import why_not_header_of
from timegrain.data.video import VideoError

_BLOCK = 1 << 20  # bytes that are kept or forgotten together
_REQUEST = 8 << 20  # the most that one request asks for
_KEPT = 64 << 20  # of one video, so that a decoder that jumps back finds what it read before
_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try


class _Bytes:
    """The bytes of one location, for one or several readers: how they are fetched, and which are kept.

    Attributes:
        path: The location.
        users: Readers that have not closed it yet.
        size: How many there are.
        failure: Why they could not be had, once that has happened; nothing is tried again then.
    """

    def __init__(self, path: str, block: int, request: int) -> None:
        location = Location.parse(path)
        self.path, self.users = path, 0
        self.failure: VideoError | None = None
        self._member, self._offset, self._block, self._most = location.member, location.offset, block, request
        self._is_remote = location.is_remote
        try:
            self._from = access(location.source, location.is_remote)
        except Unreachable as error:
            raise self._failed(error) from error
        try:
            if location.size is None:
                self.size: int = self._patiently(self._from.size)
            else:
                self.size = location.size
                self._check_part()
        except Unreachable as error:
            self._from.close()
            raise self._failed(error) from error
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next = 0  # the block after the last one fetched
        self._ahead = self._most if self.size <= self._most else self._block

    def _check_part(self) -> None:
        """Look whether a local shard still holds the member; behind a URL the first read does."""
        if self._is_remote:
            return
        end, size = self._offset + self.size, self._from.size()
        if size < end:
            raise Unreachable(f"the shard ends at byte {size:,}, before this member does ({end:,}): it is cut off")
        header = bytearray()
        self._from.read(max(0, self._offset - TAR_BLOCK), self._offset, header)
        self._check_header(bytes(header))

    def _check_header(self, header: bytes) -> None:
        assert self._member is not None
        reason = why_not_header_of(header, self._member, self.size)
        if reason:
            raise Unreachable(f"the shard is not the one that the manifest was made from: {reason}; scan it again")

    def _failed(self, error: Unreachable) -> VideoError:
        self.failure = VideoError(self.path, str(error))
        return self.failure

    def _patiently(self, function: Any, *arguments: Any) -> Any:
        """Call, and call again after a pause where another try may do better."""
        began = time.monotonic()
        for pause in (*_PAUSES, None):
            try:
                return function(*arguments)
            except Unreachable as error:
                if not error.transient:
                    raise
                if pause is None:
                    tries, seconds = len(_PAUSES) + 1, time.monotonic() - began
                    raise Unreachable(f"{error} (the last of {tries} tries in {seconds:.0f} s)") from error
                time.sleep(pause)
        raise AssertionError

    def _fetch(self, start: int, end: int) -> bytes:
        """Bytes of the part, from the disk or the network."""
        header = TAR_BLOCK if start == 0 and self._is_remote and self._member is not None else 0
        first, last = self._offset + start - header, self._offset + end
        if first < 0:
            raise Unreachable(f"no member of a tar file can begin at byte {self._offset}")
        data = bytearray()

        def go_on() -> None:
            begun = len(data)
            rest = bytearray()
            try:
                self._from.read(first + begun, last, rest)
            finally:
                data.extend(rest)
            if len(data) < last - first:
                raise Unreachable(f"the connection broke after {len(rest):,} bytes", transient=True)

        self._patiently(go_on)
        if header:
            self._check_header(bytes(data[:header]))
        return bytes(memoryview(data)[header:])

    def read(self, position: int, count: int) -> bytes:
        """Bytes from a position on, as many as there are.

        Raises:
            VideoError: They cannot be had.
        """
        if self.failure is not None:
            raise self.failure
        end = min(position + count, self.size)
        if position >= end:
            return b""
        try:
            if not self._is_remote:
                local = bytearray()
                self._from.read(self._offset + position, self._offset + end, local)
                return bytes(local)
            pieces = []
            while position < end:
                number, start = divmod(position, self._block)
                piece = self._kept(number)[start : start + end - position]
                pieces.append(piece)
                position += len(piece)
        except Unreachable as error:
            raise self._failed(error) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _kept(self, number: int) -> bytes:
        """One block, fetched with those behind it where it is not there."""
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        if self._blocks:  # reading on doubles what is asked for, a jump begins anew
            self._ahead = min(2 * self._ahead, self._most) if number == self._next else self._block
        stop = min(number + max(1, self._ahead // self._block), -(-self.size // self._block))
        stop = next((later for later in range(number + 1, stop) if later in self._blocks), stop)
        start = number * self._block
        data = self._fetch(start, min(stop * self._block, self.size))
        for later in range(number, stop):
            place = (later - number) * self._block
            self._blocks[later] = data[place : place + self._block]
        self._next = stop
        while len(self._blocks) > max(1, _KEPT // self._block):
            oldest = next(iter(self._blocks))
            if oldest == number:  # what was asked for goes last
                self._blocks.move_to_end(number)
                continue
            del self._blocks[oldest]
        return self._blocks[number]

    def close(self) -> None:
        self.users -= 1
        if not self.users:
            self._from.close()


class RangeFile(io.RawIOBase):
    """The bytes of a location as a file to read and seek in; see :func:`open_bytes`.

    Attributes:
        name: Of the video, for FFmpeg, to which endings say something.
    """

    def __init__(self, content: _Bytes, name: str) -> None:
        super().__init__()
        self.name = name
        self._content = content
        self._position = 0
        content.users += 1

    @property
    def failure(self) -> VideoError | None:
        """Why bytes could not be had, if that has happened: libraries may take it for the end of the file."""
        return self._content.failure

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._content.size

    def again(self) -> RangeFile:
        """The same bytes for another reader, without fetching them again; both are to be closed."""
        return RangeFile(self._content, self.name)

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes from here on: all that were asked for, or all that there are.

        Raises:
            VideoError: They cannot be had.
        """
        count = self._content.size if size is None or size < 0 else size
        data = self._content.read(self._position, count)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a position."""
        start = (0, self._position, self._content.size)[whence]
        if start + offset < 0:
            raise ValueError(f"no position {start + offset} in a file")
        self._position = start + offset
        return int(self._position)

    def tell(self) -> int:
        """The present position."""
        return self._position

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Give the file back."""
        if not self.closed:
            self._content.close()
        super().close()


def open_bytes(path: str, *, block: int = _BLOCK, request: int = _REQUEST) -> RangeFile:
    """Open the bytes of a location that is no plain file (one of those works too).

    Args:
        path: A location; see :mod:`timegrain.data.location`.
        block: Behind a URL: bytes that are fetched at least.
        request: Behind a URL: bytes that are fetched at most by one request.

    Raises:
        VideoError: The file is not there, cannot be reached after several tries, or is not the shard that it was.
    """
    return RangeFile(_Bytes(path, block, request), Location.parse(path).name)
