"""Where bytes come from, a range at a time: local files, HTTP, and every other file system that fsspec knows.

What libraries say of a URL may hold credentials, so their errors are not chained to ours.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

from timegrain.data.location import masked
from timegrain.data.video import short_reason

_CONNECT_SECONDS, _SILENCE_SECONDS = 10.0, 20.0  # a server that lets us wait longer counts as gone
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}


class Unreachable(Exception):
    """Bytes that cannot be had.

    Args:
        reason: Why, in one line.
        transient: Whether another try may find them.
    """

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class Access(ABC):
    """Where bytes come from."""

    @abstractmethod
    def size(self) -> int:
        """Bytes in all; may raise Unreachable."""

    @abstractmethod
    def read(self, start: int, end: int, into: bytearray) -> None:
        """Append the bytes from start to end; what came before an Unreachable stays."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Give the file back."""


class _LocalFile(Access):
    def __init__(self, source: str) -> None:
        try:
            self._file = open(source, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise Unreachable("file not found" if missing else f"can't be opened: {error.strerror}") from error

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read(self, start: int, end: int, into: bytearray) -> None:
        try:
            self._file.seek(start)
            into += self._file.read(end - start)
        except OSError as error:
            raise Unreachable(f"reading failed: {error.strerror or error}") from error
        if len(into) < end - start:
            raise Unreachable(f"the file ended at byte {self.size():,} while it was read")

    def close(self) -> None:
        self._file.close()


class _WebFile(Access):
    """HTTP, where an answer must be looked at before its bytes are taken for the ones that were asked for."""

    def __init__(self, fs: Any, url: str) -> None:
        import aiohttp
        import yarl

        self._fs = fs
        self._url = yarl.URL(url, encoded="%" in url)  # a signed URL must stay what it is, letter by letter
        self._version: str | None = None  # of the file, as the server names it
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)

    def size(self) -> int:
        total = self._run(0, 1, bytearray())
        if total is None:
            raise Unreachable("the server does not say how large the file is")
        return total

    def read(self, start: int, end: int, into: bytearray) -> None:
        self._run(start, end, into)

    def _run(self, start: int, end: int, into: bytearray) -> int | None:
        import aiohttp
        from fsspec.asyn import sync

        try:
            total: int | None = sync(self._fs.loop, self._request, start, end, into)
        except Unreachable:
            raise
        except TimeoutError:
            raise Unreachable(f"the server was silent for {_SILENCE_SECONDS:.0f} s", transient=True) from None
        except (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError) as error:
            raise Unreachable(masked(short_reason(error))) from None
        except aiohttp.ClientPayloadError:
            raise Unreachable(f"the connection broke after {len(into):,} bytes", transient=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"no connection: {masked(short_reason(error))}", transient=True) from None
        return total

    async def _request(self, start: int, end: int, into: bytearray) -> int | None:
        """One request; the size of the whole file, where the answer says it."""
        session = await self._fs.set_session()
        options = {name: value for name, value in self._fs.kwargs.items() if name not in ("headers", "timeout")}
        headers = {
            **self._fs.kwargs.get("headers", {}),
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        async with session.get(self._url, headers=headers, timeout=self._timeout, **options) as answer:
            first, total = _content_range(answer.headers.get("Content-Range", ""))
            if answer.status != 206:
                raise _refusal(answer.status, start, total)
            if first != start:
                raise Unreachable(f"the server gave other bytes (from {first}) than were asked for (from {start})")
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if self._version not in (None, version):
                raise Unreachable("the file changed while it was read")
            self._version = version
            if total is not None and total < end:
                raise Unreachable(
                    f"the file ends at byte {total:,}, before byte {end:,} that is needed: cut off, or not the one scanned"
                )
            async for chunk in answer.content.iter_any():
                into += chunk
                if len(into) > end - start:
                    raise Unreachable("the server gave more bytes than were asked for")
            return total


def _content_range(header: str) -> tuple[int | None, int | None]:
    """First byte and whole size of a Content-Range header, None where it does not say."""
    place, _, total = header.removeprefix("bytes ").partition("/")
    first = place.partition("-")[0].strip()
    return (int(first) if first.isdigit() else None), (int(total) if total.strip().isdigit() else None)


def _refusal(status: int, start: int, total: int | None) -> Unreachable:
    if status == 200:
        return Unreachable(
            "the server does not serve parts of files (it answered a Range request with the whole file). Put the files "
            "on a server that does, or on a local disk"
        )
    if status in (404, 410):
        return Unreachable(f"file not found (the server answered {status})")
    if status in (401, 403):
        return Unreachable(f"access denied (the server answered {status}): are the credentials right, the URL expired?")
    if status == 416:
        size = "" if total is None else f", which has {total:,} bytes"
        return Unreachable(f"byte {start:,} is behind the end of the file{size}: cut off, or not the one scanned")
    return Unreachable(f"the server answered {status}", transient=status in _TRANSIENT_STATUS)


class _AnyFile(Access):
    """Any other file system that fsspec knows."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path

    def size(self) -> int:
        size = self._tried(self._fs.size, self._path)
        if size is None:
            raise Unreachable("its size is not known")
        return int(size)

    def read(self, start: int, end: int, into: bytearray) -> None:
        data = self._tried(self._fs.cat_file, self._path, start=start, end=end)
        if len(data) > end - start:
            raise Unreachable("more bytes came than were asked for: this file system cannot read a part of a file")
        into += data
        if len(data) < end - start:
            raise Unreachable(f"only {len(data):,} of {end - start:,} bytes came", transient=True)

    @staticmethod
    def _tried(function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except FileNotFoundError:
            raise Unreachable("file not found") from None
        except (PermissionError, IsADirectoryError, NotImplementedError) as error:
            raise Unreachable(masked(f"{type(error).__name__}: {short_reason(error)}")) from None
        except Exception as error:  # each file system has errors of its own, mostly of the network
            raise Unreachable(masked(f"{type(error).__name__}: {short_reason(error)}"), transient=True) from None


def access(source: str, remote: bool) -> Access:
    """How to read a file or a URL.

    Args:
        source: The file or URL.
        remote: Whether it is a URL.

    Raises:
        Unreachable: The file is not there, or no installed package knows this kind of URL.
    """
    if not remote:
        return _LocalFile(source)
    from fsspec.core import url_to_fs  # not needed for local files, and slow to import

    try:
        fs, path = url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise Unreachable(masked(f"{source.split('://')[0]}:// cannot be read: {short_reason(error)}")) from None
    protocols = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    return _WebFile(fs, path) if {"http", "https"} & set(protocols) else _AnyFile(fs, path)
