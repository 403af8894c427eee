"""What tar shards hold: videos by key, with what lies beside them, found from the headers alone.

WebDataset's layout: members of one sample share the name up to the first dot, ``000123.mp4``, ``000123.json``,
``000123.cls``. Of a sample the video is a member with the ending of one; a JSON may give ``label``, ``split``,
``group`` and further columns, ``.cls`` the label.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from timegrain.data.byte_ranges import RangeFile, open_bytes
from timegrain.data.frame_store import EXTENSION as FRAME_STORE
from timegrain.data.location import Location, absolute, file_name, is_url, masked, shown
from timegrain.data.packing import FACTS, FACTS_KEY
from timegrain.data.probing import VIDEO_EXTENSIONS, Row
from timegrain.data.tar_index import Member, TarIndex, read_index

_HEADERS = 16 << 10  # bytes read at a time behind a URL: a header, the JSON behind a video, and the next header
_LARGEST_TEXT = 64 << 20  # of a JSON; a larger one is none
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


def find_shards(named: Sequence[str]) -> list[str]:
    """Tar files from what a user names.

    Args:
        named: Files, URLs, folders (all .tar files below them), patterns with * and with braces as WebDataset's users
            write them, ``{000000..000099}`` or ``{a,b}``.

    Returns:
        Absolute paths and URLs, each once, in the order named.

    Raises:
        ValueError: If a name, or what its braces stand for, is not there.
    """
    found: dict[str, None] = {}
    for name in named:
        for text in [name] if Path(name).exists() else _without_braces(name):
            if is_url(text):
                files = _remote_files(text)
            elif Path(text).is_dir():
                files = [str(file) for file in sorted(Path(text).rglob("*.tar")) if not file.name.startswith(".")]
            else:
                files = [text] if Path(text).is_file() else sorted(glob.glob(text, recursive=True))
            if not files:  # of {000..099} one shard alone may be missing
                raise ValueError(f"{shown(text)}: there is no tar file")
            found.update(dict.fromkeys(absolute(file) for file in files))
    return list(found)


def _without_braces(text: str) -> Iterator[str]:
    numbers, choice = _RANGE.search(text), _CHOICE.search(text)
    if numbers:
        first, last = numbers[1], numbers[2]
        values = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    elif choice:
        values = choice[1].split(",")
    else:
        yield text
        return
    place = numbers or choice
    assert place is not None
    for value in values:
        yield from _without_braces(text[: place.start()] + value + text[place.end() :])


def _remote_files(url: str) -> list[str]:
    if "*" not in url:
        return [url]
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url)
        return sorted(str(fs.unstrip_protocol(file)) for file in fs.glob(path))
    except Exception as error:  # each file system has errors of its own
        raise ValueError(
            masked(f"{url} cannot be listed: {error}; name every shard, {{000..099}} stands for many")
        ) from None


def is_shard(name: str) -> bool:
    """Whether a path or URL has the ending of a tar file."""
    return file_name(name).lower().endswith(".tar")


def read_shard(source: str) -> list[Row]:
    """The videos of a shard as rows of a manifest; those known from their JSON with their facts.

    Args:
        source: The tar file or its URL.

    Returns:
        Rows with ``path``, and where it is said ``label``, ``split``, ``group``, facts and further columns; ``error``
        where a video cannot be read from the shard. A damaged shard has a row of its own, last.

    Raises:
        VideoError: If the shard cannot be read at all.
    """
    with open_bytes(source, block=_HEADERS, request=_HEADERS) as file:
        index = read_index(file, file.size)  # type: ignore[arg-type]
        rows = list(_rows(source, file, index))
    if index.damage:
        rows.append({"path": source, "error": f"the shard is damaged: {index.damage}"})
    return rows


def _rows(source: str, file: RangeFile, index: TarIndex) -> Iterator[Row]:
    samples: dict[str, dict[str, Member]] = {}
    for member in index.members:
        if any(part.startswith(".") for part in PurePosixPath(member.name).parts):
            continue  # hidden, as the ._v.mp4 that macOS puts beside v.mp4; folders of videos leave them out, too
        key, ending = _key_and_ending(member.name)
        samples.setdefault(key, {})[ending] = member
    for members in samples.values():
        videos = [
            m for m in members.values() if PurePosixPath(m.name).suffix.lower() in {*VIDEO_EXTENSIONS, FRAME_STORE}
        ]
        if not videos:
            continue
        said = _said(file, members)
        for video in videos:
            place = Location(source, video.name, video.offset, video.size)
            yield {**said, "path": str(place), "error": video.problem or said.get("error")}


def _key_and_ending(name: str) -> tuple[str, str]:
    """WebDataset's way to take a name apart: at the first dot behind the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


def _said(file: RangeFile, members: dict[str, Member]) -> dict[str, Any]:
    """What a sample's JSON and class file say."""
    said: dict[str, Any] = {}
    if "json" in members:
        try:
            content = json.loads(_text(file, members["json"]))
        except ValueError as error:
            return {"error": f"its {members['json'].name} in the shard is no JSON: {error}"}
        if isinstance(content, dict):
            facts = content.pop(FACTS_KEY, None)
            said = {name: value for name, value in content.items() if name not in ("path", "error", *FACTS)}
            if isinstance(facts, dict) and all(facts.get(name) for name in FACTS):
                said.update({name: facts[name] for name in FACTS})
    if said.get("label") is None and "cls" in members:
        said["label"] = _text(file, members["cls"]).strip()
    for name in ("label", "split", "group"):
        if said.get(name) is not None:
            said[name] = str(said[name])
    return said


def _text(file: RangeFile, member: Member) -> str:
    if member.problem or member.size > _LARGEST_TEXT:
        raise ValueError(member.problem or f"it has {member.size:,} bytes")
    file.seek(member.offset)
    return file.read(member.size).decode("utf-8", "replace")
