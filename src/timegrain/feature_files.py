"""Features of many videos in one file (:mod:`timegrain.feature_tables` has its layout): no broken video stops the others.

While it works, each finished video lies in a hidden folder beside the output; the same command again continues there.
An existing Parquet output of the same weights and settings is taken over, so that new videos can be added to a folder.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from timegrain.data.decoding import VideoError
from timegrain.data.journal import KEPT, say_done_before, work_key
from timegrain.data.location import Location, absolute, is_plain, is_url, shown
from timegrain.data.manifest import Manifest
from timegrain.data.probing import find_files
from timegrain.data.shards import is_shard, read_shard
from timegrain.feature_tables import METADATA_KEY, to_table, write_npz, write_parquet
from timegrain.files import atomic_path, remove_leftovers
from timegrain.progress import track

if TYPE_CHECKING:
    from timegrain.inference import Embedder, ViewSettings

_VERSION = 1  # of the file's layout and of what decides about features; changes them, changes every key


@dataclass(frozen=True)
class EmbeddedFiles:
    """What became of many videos.

    Attributes:
        out: The file written.
        num_videos: Videos in it.
        num_reused: Of these, videos whose features were there already.
        num_time_steps: Time steps in it.
        num_features: Size of a vector, D.
        broken: (path, reason) of each video that could not be read.
    """

    out: Path
    num_videos: int
    num_reused: int
    num_time_steps: int
    num_features: int
    broken: tuple[tuple[str, str], ...]


def list_videos(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Absolute paths of the videos named, each once.

    Args:
        inputs: Files, URLs, members of shards; folders, with all videos below them; manifests (.parquet), with their usable
            videos; tar files (.tar, local or behind URLs), with the videos in them.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: There is no video at all.
    """
    found: dict[str, None] = {}
    named = [os.fspath(name) for name in inputs]
    for name in named:
        path = Path(name)
        if is_url(name) or not is_plain(name) or path.is_file():
            found.update(dict.fromkeys(_videos_of(name)))
        elif path.is_dir():
            found.update((str(file), None) for file in find_files(path))
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")
    if not found:
        raise ValueError(f"there is no video in {', '.join(map(shown, named)) or 'an empty list'}")
    return list(found)


def _videos_of(name: str) -> list[str]:
    """The videos of a manifest or a tar file; anything else is a video itself."""
    if is_shard(name) and Location.parse(name).member is None:
        return [row["path"] for row in read_shard(absolute(name)) if not row.get("error")]
    if is_plain(name) and name.endswith(".parquet"):
        return [str(path) for path in Manifest.open(name).select().column("path").to_pylist()]
    return [absolute(name)]


def embed_files(
    embedder: Embedder, inputs: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str], settings: ViewSettings
) -> EmbeddedFiles:
    """Embed many videos into one file.

    Args:
        embedder: The encoder.
        inputs: Videos and folders of videos.
        out: The file, ``.parquet`` or ``.npz``; written when all is done, whole or not at all. Broken videos are listed
            beside it in a csv file.
        settings: How videos are looked at.

    Returns:
        What was written and what could not be read.

    Raises:
        ValueError: No video could be read, the file's ending is another, or another kind of Parquet file is there.
        FileNotFoundError: An input does not exist.
    """
    out = Path(out)
    if out.suffix not in (".parquet", ".npz"):
        raise ValueError(f"the output must end in .parquet or .npz, not {out.name!r}")
    videos = list_videos(inputs)
    parts = out.with_name(f".{out.name}.parts")
    done = _existing(out, parts)
    parts.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parts)
    remove_leftovers(out.parent, glob.escape(out.stem))
    keys: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for path in videos:
        try:
            keys[path] = work_key(_VERSION, path, embedder.fingerprint, asdict(settings))
        except OSError as error:
            reasons[path] = error.strerror or str(error)
    left = [path for path, key in keys.items() if key not in done]
    num_reused = len(keys) - len(left)
    say_done_before(num_reused, len(videos))
    single = len(videos) == 1
    try:
        for path in left if single else track(left, "embedding"):
            try:
                table = to_table(embedder.embed_with(path, settings, progress=single))
            except VideoError as error:
                reasons[path] = error.reason
                continue
            with atomic_path(parts / f"{keys[path]}.parquet") as temporary:
                pq.write_table(table, temporary)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(KEPT) from None
    broken = [(shown(path), reasons[path]) for path in videos if path in reasons]
    keys = {path: key for path, key in keys.items() if path not in reasons}
    if not keys:
        shutil.rmtree(parts, ignore_errors=True)
        first = "; ".join(f"{path}: {reason}" for path, reason in broken[:3])
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ValueError(f"none of {len(broken)} videos could be read: {first}{more}")
    facts = {
        "version": _VERSION,
        "backbone": embedder.encoder.config.backbone,
        "weights": embedder.fingerprint,
        "settings": asdict(settings),
        "videos": [[shown(path), key] for path, key in keys.items()],
        "broken": [list(item) for item in broken],
    }
    steps, width = _join(out, parts, done, facts)
    _list_broken(out, broken)
    shutil.rmtree(parts, ignore_errors=True)
    return EmbeddedFiles(out, len(keys), num_reused, steps, width, tuple(broken))


def _existing(out: Path, parts: Path) -> dict[str, int | None]:
    """Keys of finished videos: the row group of the output that holds it, or None for a part."""
    done: dict[str, int | None] = {}
    if out.suffix == ".parquet" and out.exists():
        try:
            metadata = pq.read_metadata(out)
            facts = json.loads((metadata.metadata or {}).get(METADATA_KEY, b"{}"))
        except (pa.ArrowInvalid, json.JSONDecodeError):
            facts, metadata = {}, None  # it is replaced at the end
        if metadata is not None and METADATA_KEY not in (metadata.metadata or {}):
            raise ValueError(f"{out} holds something else, such as a manifest; choose another name for the features")
        if metadata is not None and metadata.num_row_groups == len(facts.get("videos", ())):
            done.update((key, group) for group, (_, key) in enumerate(facts["videos"]))
    done.update((file.stem, None) for file in parts.glob("*.parquet") if not file.name.startswith("."))
    return done


def _join(out: Path, parts: Path, done: dict[str, int | None], facts: dict[str, Any]) -> tuple[int, int]:
    """Write the output from the parts and from what the old output holds; returns its time steps and width."""
    old = pq.ParquetFile(out) if any(group is not None for group in done.values()) else None

    def tables() -> Iterable[pa.Table]:
        for _, key in facts["videos"]:
            group = done.get(key)
            yield old.read_row_group(group) if old and group is not None else pq.read_table(parts / f"{key}.parquet")

    with atomic_path(out) as temporary:
        try:
            return write_npz(temporary, tables()) if out.suffix == ".npz" else write_parquet(temporary, tables(), facts)
        finally:
            if old is not None:
                old.close()  # before the new file takes its place


def _list_broken(out: Path, broken: Sequence[tuple[str, str]]) -> None:
    """Write (or remove) the csv file of broken videos beside the output."""
    path = out.with_suffix(".broken.csv")
    if not broken:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(broken)
