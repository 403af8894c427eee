"""Where the members of a tar file lie, from its headers alone.

Read are ustar, GNU and pax archives, uncompressed: long names, long links, sizes beyond 8 GB, global headers. A member
that is stored sparsely or is a link has no bytes of its own in one place: it is listed with the reason. Python's
``tarfile`` reads headers too, but takes damage for the end of the archive; here damage is told, as a shard cut off is a
shard with videos missing. Formats: POSIX.1-2001 (pax), GNU tar manual, section "Basic Tar Format".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

BLOCK = 512
_PADDING = 64 << 10  # bytes behind the end that are looked at; GNU tar fills up to 10,240
_LONG = 1 << 20  # bytes of a long name or a pax header; more is damage or an attack
_REGULAR = b"0\0" + b"7"
_LINKS = {b"1": "a hard link", b"2": "a symbolic link"}
_WITHOUT_DATA = b"123456"
_ENCODING, _ERRORS = "utf-8", "surrogateescape"


class TarDamage(ValueError):
    """A tar file that is not whole; the message says where."""


@dataclass(frozen=True)
class Member:
    """A file in a tar file.

    Attributes:
        name: As stored, folders included; bytes that are not UTF-8 as surrogates.
        offset: Where its content begins, in bytes.
        size: Bytes of its content.
        problem: Why its content cannot be read as a range of bytes; empty where it can.
    """

    name: str
    offset: int
    size: int
    problem: str = ""


@dataclass(frozen=True)
class _Header:
    name: str
    size: int
    kind: bytes
    link: str
    is_extended: bool  # GNU sparse: more of the map follows


@dataclass(frozen=True)
class TarIndex:
    """What a tar file holds.

    Attributes:
        members: Its files, in order; folders and devices are left out.
        damage: Where and why reading stopped before the archive's end; empty for a whole one.
    """

    members: tuple[Member, ...]
    damage: str = ""


def read_index(file: BinaryIO, size: int) -> TarIndex:
    """Read the headers of a tar file, and nothing else.

    Args:
        file: The tar file, readable at any place.
        size: Bytes of it.

    Returns:
        Its members up to its end, or up to the place where it is damaged.
    """
    members: list[Member] = []
    try:
        _walk(file, size, members)
    except TarDamage as error:
        return TarIndex(tuple(members), str(error))
    return TarIndex(tuple(members))


def _walk(file: BinaryIO, total: int, members: list[Member]) -> None:
    position = 0
    everywhere: dict[str, str] = {}
    said: dict[str, str] = {}  # of the next member alone
    sparse = False
    while position < total:
        data = _read(file, position, BLOCK, total)
        if not any(data):
            _check_end(file, position, total)
            return
        header = _parse(data, position)
        content = position + BLOCK
        extended = header.is_extended
        while extended:  # the rest of a GNU sparse map lies between header and content
            extended = _read(file, content, BLOCK, total)[504] != 0
            content += BLOCK
        if header.kind in b"xgXLK" and header.size > _LONG:
            raise TarDamage(f"byte {position:,}: a header of {header.size:,} bytes")
        if header.kind in (b"L", b"K"):  # GNU: the next member's name, or what it links to
            text = _text(_read(file, content, header.size, total).split(b"\0")[0])
            said["path" if header.kind == b"L" else "linkpath"] = text
        elif header.kind in (b"x", b"X", b"g"):
            records = _pax(_read(file, content, header.size, total), position)
            sparse |= any(name.startswith("GNU.sparse") for name in records)
            (everywhere if header.kind == b"g" else said).update(records)
        else:
            size = header.size
            facts = {**everywhere, **said}
            if "size" in facts:
                size = _decimal(facts["size"], position)
            if header.kind in _WITHOUT_DATA:
                size = 0
            name = facts.get("GNU.sparse.name") or facts.get("path") or header.name
            member = _member(name, content, size, header, facts, sparse)
            is_cut = content + size > total
            if member is not None:
                members.append(replace(member, problem="the shard ends inside it") if is_cut else member)
            if is_cut:
                raise TarDamage(
                    f"it ends at byte {total:,}, inside the member {name!r}, which ends at {content + size:,}"
                )
            position = content + _padded(size)
            said, sparse = {}, False
            continue
        position = content + _padded(header.size)
    if said or not members:
        raise TarDamage(f"it ends at byte {total:,} without a member" if total else "it is empty")


def _check_end(file: BinaryIO, position: int, total: int) -> None:
    """Behind an archive's end is padding alone: in another archive there videos would be missing."""
    if _read(file, position, min(total - position, _PADDING), total).strip(b"\0"):
        raise TarDamage(
            f"byte {position:,}: its end, but more lies behind it, as where tar files are joined by cat; "
            "unpack it with tar --ignore-zeros and pack it anew"
        )


def _member(
    name: str, offset: int, size: int, header: _Header, facts: Mapping[str, str], sparse: bool
) -> Member | None:
    """A file, or None for what is none."""
    if header.kind in _LINKS:
        target = facts.get("linkpath") or header.link
        return Member(name, offset, 0, f"is {_LINKS[header.kind]} to {target} in its shard, not a file")
    if header.kind == b"S" or sparse:
        return Member(name, offset, size, "is stored sparsely in its shard; pack it anew without --sparse")
    if header.kind in _WITHOUT_DATA or (header.kind == b"\0" and header.name.endswith("/")):
        return None
    return Member(name, offset, size)


def why_not_header_of(data: bytes, name: str, size: int) -> str:
    """Why 512 bytes are not the header of a member of this name and size; empty if they are."""
    try:
        header = _parse(data, 0)
    except TarDamage:
        return "no member begins at the place of this one"
    if header.kind not in _REGULAR:
        return f"another kind of member lies at the place of this one ({header.kind!r})"
    if header.size != size and size < 8**11:  # larger sizes stand in the pax header before this one
        return f"a member of {header.size:,} bytes lies at the place of this one of {size:,}"
    # Long names and those beyond ASCII stand in a header before this one, and here only in part.
    if header.name != name and len(name) < 100 and name.isascii():
        return f"the member {header.name!r} lies at the place of this one"
    return ""


def _parse(data: bytes, position: int) -> _Header:
    if len(data) < BLOCK:
        raise TarDamage(f"byte {position:,}: a header is cut off")
    if data[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5") and position == 0:
        raise TarDamage("it is compressed; members can be read in place only from a plain tar file")
    stored = _number(data[148:156], position)
    plain = data[:148] + b" " * 8 + data[156:]
    if stored not in (sum(plain), sum(byte - 256 if byte > 127 else byte for byte in plain)):
        raise TarDamage(f"byte {position:,}: no tar header (its check sum is wrong)")
    name, kind = _text(data[:100].split(b"\0")[0]), data[156:157]
    if data[257:263] == b"ustar\0" and kind not in b"xgXLK":
        prefix = _text(data[345:500].split(b"\0")[0])
        name = f"{prefix}/{name}" if prefix else name
    is_extended = kind == b"S" and data[482] != 0
    return _Header(name, _number(data[124:136], position), kind, _text(data[157:257].split(b"\0")[0]), is_extended)


def _number(field: bytes, position: int) -> int:
    """Octal text, or (GNU) a binary number behind 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0")[0].strip()
    if text and not re.fullmatch(rb"[0-7]+", text):
        raise TarDamage(f"byte {position:,}: no tar header (a number is none)")
    return int(text or b"0", 8)


def _decimal(text: str, position: int) -> int:
    if not text.isascii() or not text.isdigit():
        raise TarDamage(f"byte {position:,}: a pax header gives the size {text!r:.40}")
    return int(text)


def _pax(data: bytes, position: int) -> dict[str, str]:
    """Records of a pax header: LENGTH KEYWORD=VALUE and a line's end, each."""
    records: dict[str, str] = {}
    place = 0
    while place < len(data) and data[place]:
        found = re.compile(rb"(\d{1,9}) ([^=]+)=").match(data, place)
        end = place + int(found[1]) if found else 0
        if not found or end > len(data) or end <= found.end() or data[end - 1 : end] != b"\n":
            raise TarDamage(f"byte {position:,}: a pax header is broken")
        records[_text(found[2])] = _text(data[found.end() : end - 1])
        place = end
    return records


def _text(data: bytes) -> str:
    return data.decode(_ENCODING, _ERRORS)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read(file: BinaryIO, position: int, count: int, total: int) -> bytes:
    if position + count > total:
        raise TarDamage(f"it ends at byte {total:,}, inside a header")
    file.seek(position)
    data = file.read(count)
    if len(data) < count:
        raise TarDamage(f"it ends at byte {position + len(data):,}, inside a header")
    return data
