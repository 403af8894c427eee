"""Where a video lies, as one text: a file, a URL, or a part of either (a member of a tar shard).

::

    videos/a.mp4
    s3://bucket/videos/a.mp4
    shards/train-000000.tar#left/v0.mp4@1536+20480

The last one names the 20,480 bytes from byte 1,536 of a shard on, which hold its member ``left/v0.mp4``. A text of this
kind stands wherever a path of a video does: in a manifest, in lists of broken videos, on a command line. In the name of a
member, ``%``, ``#`` and what is not printable are written as ``%XX``.

URLs may carry credentials. What is printed or written into lists and results goes through :func:`shown`.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

_PART = re.compile(r"#([^#]+)@(\d+)\+(\d+)$")
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+(?:::[A-Za-z][A-Za-z0-9+.-]+)*://"  # chained ones too, such as simplecache::s3://
_URL = re.compile(_SCHEME)
_URL_IN_TEXT = re.compile(_SCHEME + r"[^\s'\"<>]+")
_UNSAFE = re.compile(r"[%#\x00-\x1f\x7f\udc80-\udcff]")
# Up to an @ before the first slash; or from a colon that begins no port up to the last @, as secrets may hold slashes.
_USER = re.compile(r"[^/?#@]*@|[^/:@?#]*:(?!\d{1,5}(?:/|$))[^?#]*@")
# What a query says of who asks and for how long, not of what is asked for: signatures of S3, Google, Azure, CloudFront.
_PERMISSION = re.compile(
    r"x-(?:amz|goog)-|(?:s[eprtv]|sig|ske|skoid|sks|skt|sktid|skv|spr|sip)$|awsaccesskeyid$|key-pair-id$|policy$"
    r"|.*(?:token|signature|secret|passw|pwd|auth|credential|session|expire)",
    re.IGNORECASE,
)
_HIDDEN = re.compile(r"\?\*\*\*(?:~[0-9a-f]{8})?[.,:;)\]}]*$")  # a query as `shown` writes it, also within a sentence


@dataclass(frozen=True)
class Location:
    """A text taken apart.

    Attributes:
        source: The file or URL that holds the bytes.
        member: Name of the member, where it is a part of a shard.
        offset: Where the part begins, in bytes.
        size: Bytes of the part; None for a whole file.
    """

    source: str
    member: str | None = None
    offset: int = 0
    size: int | None = None

    @classmethod
    def parse(cls, text: str) -> Location:
        """From the text."""
        part = _PART.search(text)
        if part is None:
            return cls(text)
        return cls(text[: part.start()], unquote(part[1], errors="surrogateescape"), int(part[2]), int(part[3]))

    def __str__(self) -> str:
        if self.member is None:
            return self.source
        member = _UNSAFE.sub(
            lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape")), self.member
        )
        return f"{self.source}#{member}@{self.offset}+{self.size}"

    @property
    def is_remote(self) -> bool:
        """Whether the bytes are behind a URL."""
        return is_url(self.source)

    @property
    def name(self) -> str:
        """Name of the video file, without folders."""
        if self.member is not None:
            return PurePosixPath(self.member).name
        return (
            PurePosixPath(re.split(r"[?#]", self.source)[0]).name if self.is_remote else os.path.basename(self.source)
        )


def is_url(text: str) -> bool:
    """Whether a text begins as a URL does."""
    return "://" in text and _URL.match(text) is not None


def is_plain(path: str) -> bool:
    """Whether a path names a whole local file."""
    return not ("#" in path and _PART.search(path)) and not is_url(path)


def file_name(path: str) -> str:
    """Name of the video file without folders, also of a member or a URL."""
    return Location.parse(path).name


def absolute(path: str, folder: str | os.PathLike[str] | None = None) -> str:
    """A location whose file starts at the root; URLs are as they were.

    Args:
        path: A location.
        folder: Where relative paths start; the current folder by default.
    """
    if is_url(path):
        return path
    part = _PART.search(path) if "#" in path else None
    file, rest = (path, "") if part is None else (path[: part.start()], part[0])
    return os.path.normpath(Path(folder or Path.cwd()) / file) + rest


def relative(path: str, folder: Path) -> str:
    """A location relative to a folder, with forward slashes, when it lies inside; else as it is."""
    if is_url(path):
        return path
    part = _PART.search(path) if "#" in path else None
    file, rest = (path, "") if part is None else (path[: part.start()], part[0])
    try:
        return Path(file).relative_to(folder).as_posix() + rest
    except ValueError:
        return path


def file_state(path: str) -> tuple[int | None, int | None]:
    """What tells whether a video's bytes are still the same: size in bytes and time of modification in ns.

    Of a part these are its own size and its shard's time. What lies behind a URL is taken to stay what it is: there the
    time is None, and for a whole file the size too.

    Raises:
        OSError: There is no such file.
    """
    location = Location.parse(path)
    if location.is_remote:
        return location.size, None
    state = os.stat(location.source)
    return (state.st_size if location.size is None else location.size), state.st_mtime_ns


def shown(path: str) -> str:
    """A location as it may be printed: of a URL neither user nor password nor query.

    URLs that differ in what they ask for stay apart, as ``?***~`` with eight digits of a hash: ``?id=1`` and ``?id=2`` are
    two videos. Parameters that give permission (signatures, tokens, their dates) are not part of it, so no hash tells of
    them, and a URL that was signed anew is shown as before.
    """
    found = _URL.match(path) if "://" in path else None
    if found is None:
        return path
    part = _PART.search(path)
    rest = path[found.end() : part.start() if part else len(path)]
    user = _USER.match(rest)
    if user is not None:
        rest = "***@" + rest[user.end() :]
    query = re.search(r"[?#].*", rest, flags=re.DOTALL)
    if query is not None and not _HIDDEN.match(query[0]):
        rest = rest[: query.start()] + "?***" + _told_apart(rest[: query.start()], query[0])
    return found[0] + rest + (part[0] if part else "")


def _told_apart(before: str, query: str) -> str:
    """What stands for the part of a query that says what is asked for; empty where there is no such part."""
    asked = [name for name in re.split(r"[?&;#]", query) if name and not _PERMISSION.match(name.split("=")[0])]
    if not asked:
        return ""
    text = "&".join([before, *asked])
    return "~" + hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def cache_key(path: str) -> str:
    """What names a video in the keys of kept features and frames, and in nothing that is read: the path itself.

    What :func:`shown` leaves out counts too, as ``?id=1`` and ``?id=2`` are two videos, but only its hash is given.
    """
    name = shown(path)
    return path if name == path else f"{name} {hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()}"


def masked(text: str) -> str:
    """A message with every URL in it as :func:`shown` has it."""
    return _URL_IN_TEXT.sub(lambda found: shown(found[0]), text) if "://" in text else text
