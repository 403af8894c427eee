"""Write videos into tar shards, in WebDataset's layout: a member per video and, by the same key, a JSON of what is known.

::

    train-000000.tar    left/v0.mp4  left/v0.json  left/v1.mp4  left/v1.json  …
    shards.jsonl        which shard is whole, what went into it, and where its members lie

The JSON has the video's label, split, group and further columns of its manifest, and under ``timegrain`` what was found
when the video was read, so that a manifest can be made from the shards alone without reading the videos again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from timegrain.data.byte_ranges import open_bytes
from timegrain.data.journal import Journal
from timegrain.data.location import Location, file_state
from timegrain.data.probing import Row
from timegrain.data.tar_index import read_index
from timegrain.data.video import VideoError
from timegrain.files import atomic_path, remove_leftovers
from timegrain.progress import track

FACTS = ("num_frames", "fps", "duration_seconds", "width", "height", "codec")
FACTS_KEY = "timegrain"
_NOT_IN_JSON = {"path", "error", "size_bytes", "modified_ns", "source_path", *FACTS}
_JOURNAL = "shards.jsonl"
_COPY = 1 << 20  # bytes at a time
MEGABYTE = 1_000_000
Places = dict[str, tuple[int, int]]  # offset and size by name of the member


@dataclass(frozen=True)
class _Sample:
    """A video to be packed: where it is, what it is called in its shard, and its JSON."""

    source: str
    size: int
    modified_ns: int | None
    key: str
    ending: str
    facts: bytes

    @property
    def num_bytes(self) -> int:
        """In the tar file, headers and padding included."""
        return sum(512 + -(-size // 512) * 512 for size in (self.size, len(self.facts)))


@dataclass(frozen=True)
class _Shard:
    name: str
    samples: tuple[_Sample, ...]

    @property
    def digest(self) -> str:
        """Changes with anything that goes into the shard."""
        digest = hashlib.sha256()
        for s in self.samples:
            digest.update(repr((s.source, s.size, s.modified_ns, s.key, s.ending)).encode() + s.facts)
        return digest.hexdigest()[:32]


def pack_rows(rows: Sequence[Row], folder: Path, shard_megabytes: int, restart: bool = False) -> list[Row]:
    """Pack the usable videos of a manifest's rows into shards, those of each split into shards of their own.

    Each shard appears whole or not at all. The same call again goes on after an interruption; a shard whose videos are
    what they were is not written again.

    Args:
        rows: Of a manifest, with absolute paths; rows with an ``error`` are not packed.
        folder: Where the shards go.
        shard_megabytes: Of one shard, at most, unless a single video is larger.
        restart: Write every shard again.

    Returns:
        The rows in their order, where packed ones point into the shards.

    Raises:
        ValueError: If the size is no size, no row is usable, the videos lie in shards in that very folder, or a shard
            that was not written here would be written over.
        VideoError: If a video vanished or changed meanwhile.
        OSError: If the disk is full.
    """
    if shard_megabytes < 1:
        raise ValueError(f"--shard-megabytes {shard_megabytes}: a shard has at least 1 MB")
    shards = _plan(rows, shard_megabytes * MEGABYTE)
    if not shards:
        raise ValueError("none of the videos is usable, so there is nothing to pack")
    read_from = {Path(Location.parse(sample.source).source) for shard in shards for sample in shard.samples}
    if any(path.suffix == ".tar" and path.parent.resolve() == folder.resolve() for path in read_from):
        raise ValueError(
            f"the videos lie in the shards in {folder}, which would be written over while they are read; choose another "
            "--out"
        )
    remove_leftovers(folder)
    packed: dict[str, Location] = {}
    with Journal(folder / _JOURNAL, "shard") as journal:
        known = journal.known
        others = [path for shard in shards if shard.name not in known and (path := folder / shard.name).exists()]
        if others and not restart:
            raise ValueError(
                f"{others[0]} is there already, and {journal.path} does not say that it was written by this command: it "
                "would be written over. Choose another --out, or --restart true to write over it"
            )
        for name in known.keys() - {shard.name for shard in shards}:  # of an earlier, longer list of videos
            (folder / name).unlink(missing_ok=True)
        for shard in track(shards, "writing shards", len(shards)):
            path = folder / shard.name
            entry = {} if restart else known.get(shard.name, {})
            is_same = entry.get("digest") == shard.digest and path.is_file()
            if is_same and path.stat().st_size == entry["size_bytes"]:
                places = {name: (place[0], place[1]) for name, place in entry["members"].items()}
            else:
                journal.add({"shard": shard.name})  # ours from now on, also where a kill comes before the next note
                places = _write(shard, path)
                line = {"shard": shard.name, "digest": shard.digest, "size_bytes": path.stat().st_size}
                journal.add({**line, "members": places})
            for sample in shard.samples:
                name = sample.key + sample.ending
                packed[sample.source] = Location(str(path), name, *places[name])
    return [_packed(row, packed[row["path"]]) if row.get("error") is None else dict(row) for row in rows]


def _packed(row: Row, place: Location) -> Row:
    """The row of a video in a shard; the time of the file that it was is of no use there."""
    kept = {name: value for name, value in row.items() if name != "source_path"}
    return {**kept, "path": str(place), "size_bytes": place.size, "modified_ns": None}


def _plan(rows: Sequence[Row], shard_bytes: int) -> list[_Shard]:
    """Which video goes into which shard, in the order of the rows; every file once."""
    usable = {row["path"]: row for row in reversed(rows) if row.get("error") is None}
    names = {path: Location.parse(path) for path in usable}
    folders = {_folder_of(place) for place in names.values()}
    root = os.path.commonpath(folders) if len({path.startswith("/") for path in folders}) == 1 else ""
    taken: set[tuple[str, str]] = set()
    plans: dict[str, list[list[_Sample]]] = defaultdict(list)
    filled: dict[str, int] = {}
    for row in rows:
        path = row["path"]
        if usable.pop(path, None) is None:
            continue
        split = re.sub(r"[^\w-]", "_", row.get("split") or "videos")
        key = _key(names[path], root)
        number, unique = 1, key
        while (split, unique) in taken:
            number, unique = number + 1, f"{key}-{number}"
        taken.add((split, unique))
        sample = _sample(row, names[path], unique)
        if not plans[split] or filled[split] + sample.num_bytes > shard_bytes:
            plans[split].append([])
            filled[split] = 0
        plans[split][-1].append(sample)
        filled[split] += sample.num_bytes
    return [
        _Shard(f"{split}-{number:06d}.tar", tuple(samples))
        for split, shards in plans.items()
        for number, samples in enumerate(shards)
    ]


def _folder_of(place: Location) -> str:
    return str(PurePosixPath(place.member or place.source).parent)


def _key(place: Location, root: str) -> str:
    """A sample's key: path below the folder that holds all, without ending. WebDataset's keys end at the first dot."""
    path = PurePosixPath(place.member or place.source)
    stem = re.sub(r"[.#%]", "_", PurePosixPath(place.name).stem) or "_"
    below = os.path.relpath(path.parent, root) if root else "."
    return stem if below == "." else f"{below.replace('#', '_').replace('%', '_')}/{stem}"


def _sample(row: Mapping[str, Any], place: Location, key: str) -> _Sample:
    path = row["path"]
    try:
        size, modified = file_state(path)
    except OSError as error:
        raise VideoError(path, f"can't be packed: {error.strerror}") from error
    if size is None:
        with open_bytes(path) as file:
            size = file.size
    said = {name: value for name, value in row.items() if name not in _NOT_IN_JSON and value is not None}
    facts = {**said, FACTS_KEY: {name: row.get(name) for name in FACTS}}
    text = json.dumps(facts, default=str, ensure_ascii=False)
    return _Sample(path, size, modified, key, PurePosixPath(place.name).suffix.lower(), text.encode())


def _write(shard: _Shard, path: Path) -> Places:
    """Write one shard and find its members again; a shard that reads otherwise than it was written is not kept."""
    with atomic_path(path) as temporary:
        with temporary.open("wb") as raw:
            with tarfile.TarFile(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_COPY) as archive:
                for name, size, content in _members(shard):
                    info = tarfile.TarInfo(name)
                    info.size, info.mode = size, 0o644
                    archive.addfile(info, content)
            raw.flush()
            os.fsync(raw.fileno())
        with temporary.open("rb") as file:
            index = read_index(file, temporary.stat().st_size)
        places = {member.name: (member.offset, member.size) for member in index.members if not member.problem}
        wanted = {s.key + s.ending: s.size for s in shard.samples}
        assert not index.damage, index.damage
        assert wanted.items() <= {name: size for name, (_, size) in places.items()}.items()
    return {name: place for name, place in places.items() if name in wanted}


def _members(shard: _Shard) -> Iterator[tuple[str, int, Any]]:
    for sample in shard.samples:
        with open_bytes(sample.source) as file:
            if file.size != sample.size:
                raise VideoError(sample.source, "changed while shards were written; give the command again")
            yield sample.key + sample.ending, sample.size, file
        yield f"{sample.key}.json", len(sample.facts), io.BytesIO(sample.facts)
