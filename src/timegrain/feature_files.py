"""Features of many videos in one file: restartable, and no broken video stops the others.

**Parquet**, one row per vector, so that ``pandas.read_parquet`` and polars open it as a table:

=================  =================================================================================================
``path``           absolute path of the video, or its URL (without credentials), or its place in a shard
``kind``           ``time_step``, ``clip`` (a window: the mean over its time steps) or ``video`` (the mean of windows)
``index``          0, 1, … within the video and kind
``start_seconds``  when the moment begins
``seconds``        mean time of the frames that a time step covers; the middle of a clip or video
``end_seconds``    when it ends
``features``       D numbers, float32
=================  =================================================================================================

Each video is one row group. The file's metadata (key ``timegrain``, JSON) tells the weights, the settings, and the
videos that could not be read.

**npz**, flat arrays: ``paths`` (V,); ``features`` (N, D), ``seconds``, ``start_seconds``, ``end_seconds`` and ``video``
(N,), the row of ``paths``; the same for windows with the prefix ``clip_``; ``video_features`` (V, D).

While it works, each finished video lies in a hidden folder beside the output; the same command again continues there.
An existing Parquet output of the same weights and settings is taken over, so that new videos can be added to a folder.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from timegrain.data.decoding import VideoError
from timegrain.data.journal import KEPT, say_done_before, work_key
from timegrain.data.location import Location, absolute, is_plain, is_url, shown
from timegrain.data.manifest import Manifest
from timegrain.data.probing import find_files
from timegrain.data.shards import is_shard, read_shard
from timegrain.files import atomic_path, remove_leftovers
from timegrain.progress import track

if TYPE_CHECKING:
    from timegrain.inference import Embedder, ViewSettings

Array = npt.NDArray[np.float64]

_METADATA_KEY = b"timegrain"
_VERSION = 1  # of the file's layout and of what decides about features; changes them, changes every key


@dataclass(frozen=True)
class VideoFeatures:
    """What an encoder sees in one video.

    Attributes:
        path: The file.
        features: (N, D) float32, one row per time step; L2-normalised embeddings where a head was asked for.
        timestamps_seconds: (N,) mean time of the frames that the time step covers.
        start_seconds: (N,) when the time step begins.
        end_seconds: (N,) when it ends.
        duration_seconds: Of the video.
        clip_features: (K, D) one row per window: the mean over its time steps.
        clip_start_seconds: (K,) when the window's first frame appears.
        clip_end_seconds: (K,) when its last frame ends.
        video_feature: (D,) mean over the windows.
        head: The projection head, or None for the backbone's features.
    """

    path: str
    features: npt.NDArray[np.float32]
    timestamps_seconds: Array
    start_seconds: Array
    end_seconds: Array
    duration_seconds: float
    clip_features: npt.NDArray[np.float32]
    clip_start_seconds: Array
    clip_end_seconds: Array
    video_feature: npt.NDArray[np.float32]
    head: str | None = None

    def self_similarity(self) -> npt.NDArray[np.float32]:
        """(N, N) cosine similarity between all time steps (the paper's Fig. 3)."""
        unit = self.features / np.maximum(np.linalg.norm(self.features, axis=1, keepdims=True), 1e-12)
        similarity: npt.NDArray[np.float32] = unit @ unit.T
        return similarity


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


def read_features(path: str | os.PathLike[str]) -> pa.Table:
    """The table of a Parquet file written by :func:`embed_files`.

    Raises:
        ValueError: It is another kind of file.
    """
    _facts_of(path)
    return pq.read_table(path)


def _facts_of(path: str | os.PathLike[str]) -> bytes:
    """What :func:`embed_files` noted in its Parquet file, as JSON; ValueError if it is another kind of file."""
    try:
        metadata: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    if _METADATA_KEY not in metadata:
        raise ValueError(f"{path} was not written by `timegrain embed`")
    return metadata[_METADATA_KEY]


def read_videos(path: str | os.PathLike[str]) -> Iterator[VideoFeatures]:
    """The videos of a Parquet file written by :func:`embed_files`, one after the other, in its order.

    Raises:
        ValueError: It is another kind of file.
    """
    facts = json.loads(_facts_of(path))
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield _from_table(file.read_row_group(group), facts["settings"]["head"])


def _from_table(table: pa.Table, head: str | None) -> VideoFeatures:
    """One video's features, from its rows."""
    rows = table["features"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    kinds = np.array(table["kind"].to_pylist())
    times = {name: table[name].to_numpy() for name in ("start_seconds", "seconds", "end_seconds")}
    step, clip, video = (kinds == kind for kind in ("time_step", "clip", "video"))
    return VideoFeatures(
        path=table["path"][0].as_py(),
        features=rows[step],
        timestamps_seconds=times["seconds"][step],
        start_seconds=times["start_seconds"][step],
        end_seconds=times["end_seconds"][step],
        duration_seconds=float(times["end_seconds"][video][0]),
        clip_features=rows[clip],
        clip_start_seconds=times["start_seconds"][clip],
        clip_end_seconds=times["end_seconds"][clip],
        video_feature=rows[video][0],
        head=head,
    )


def to_table(video: VideoFeatures) -> pa.Table:
    """One video's rows in the layout of the Parquet file."""
    width = len(video.video_feature)
    kinds = (
        ("time_step", video.features, video.start_seconds, video.timestamps_seconds, video.end_seconds),
        (
            "clip",
            video.clip_features,
            video.clip_start_seconds,
            (video.clip_start_seconds + video.clip_end_seconds) / 2,
            video.clip_end_seconds,
        ),
        (
            "video",
            video.video_feature[None],
            np.zeros(1),
            np.array([video.duration_seconds / 2]),
            np.array([video.duration_seconds]),
        ),
    )
    tables = []
    for kind, features, start, middle, end in kinds:
        count = len(features)
        values = pa.array(np.ascontiguousarray(features, np.float32).reshape(-1))
        tables.append(
            pa.table(
                {
                    "path": pa.array([shown(absolute(video.path))] * count, pa.string()),
                    "kind": pa.array([kind] * count, pa.string()),
                    "index": pa.array(np.arange(count), pa.int32()),
                    "start_seconds": pa.array(start, pa.float64()),
                    "seconds": pa.array(middle, pa.float64()),
                    "end_seconds": pa.array(end, pa.float64()),
                    "features": pa.FixedSizeListArray.from_arrays(values, width),
                }
            )
        )
    return pa.concat_tables(tables)


def _existing(out: Path, parts: Path) -> dict[str, int | None]:
    """Keys of finished videos: the row group of the output that holds it, or None for a part."""
    done: dict[str, int | None] = {}
    if out.suffix == ".parquet" and out.exists():
        try:
            metadata = pq.read_metadata(out)
            facts = json.loads((metadata.metadata or {}).get(_METADATA_KEY, b"{}"))
        except (pa.ArrowInvalid, json.JSONDecodeError):
            facts, metadata = {}, None  # it is replaced at the end
        if metadata is not None and _METADATA_KEY not in (metadata.metadata or {}):
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
            return (
                _write_npz(temporary, tables()) if out.suffix == ".npz" else _write_parquet(temporary, tables(), facts)
            )
        finally:
            if old is not None:
                old.close()  # before the new file takes its place


def _write_parquet(path: Path, tables: Iterable[pa.Table], facts: dict[str, Any]) -> tuple[int, int]:
    steps, width, writer = 0, 0, None
    try:
        for table in tables:
            if writer is None:  # only its schema has the facts: they name every video
                schema = table.schema.with_metadata({_METADATA_KEY: json.dumps(facts)})
                writer = pq.ParquetWriter(path, schema, compression="zstd")
                width = table.schema.field("features").type.list_size
            writer.write_table(table, row_group_size=max(1, len(table)))
            steps += table["kind"].to_pylist().count("time_step")
    finally:
        if writer is not None:
            writer.close()
    return steps, width


def _write_npz(path: Path, tables: Iterable[pa.Table]) -> tuple[int, int]:
    columns: dict[str, list[npt.NDArray[Any]]] = {}
    paths = []
    for number, table in enumerate(tables):
        paths.append(table["path"][0].as_py())
        features = table["features"].combine_chunks()
        rows = features.flatten().to_numpy().reshape(len(table), -1)
        kinds = np.array(table["kind"].to_pylist())
        for kind, prefix in (("time_step", ""), ("clip", "clip_")):
            chosen = kinds == kind
            columns.setdefault(f"{prefix}features", []).append(rows[chosen])
            columns.setdefault(f"{prefix}video", []).append(np.full(int(chosen.sum()), number))
            for name in ("start_seconds", "seconds", "end_seconds"):
                columns.setdefault(f"{prefix}{name}", []).append(table[name].to_numpy()[chosen])
        columns.setdefault("video_features", []).append(rows[kinds == "video"])
    arrays: dict[str, Any] = {name: np.concatenate(values) for name, values in columns.items()}
    arrays["paths"] = np.array(paths)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return arrays["features"].shape[0], arrays["features"].shape[1]


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
