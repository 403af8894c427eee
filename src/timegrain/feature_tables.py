"""What an encoder sees in videos, as the rows of a file.

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
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from timegrain.data.location import absolute, shown

Array = npt.NDArray[np.float64]

METADATA_KEY = b"timegrain"


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


def read_features(path: str | os.PathLike[str]) -> pa.Table:
    """The table of a Parquet file written by :func:`timegrain.feature_files.embed_files`.

    Raises:
        ValueError: It is another kind of file.
    """
    _facts_of(path)
    return pq.read_table(path)


def _facts_of(path: str | os.PathLike[str]) -> bytes:
    """What `timegrain embed` noted in its Parquet file, as JSON; ValueError if it is another kind of file."""
    try:
        metadata: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path} was not written by `timegrain embed`")
    return metadata[METADATA_KEY]


def read_videos(path: str | os.PathLike[str]) -> Iterator[VideoFeatures]:
    """The videos of a Parquet file of `timegrain embed`, one after the other, in its order.

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


def write_parquet(path: Path, tables: Iterable[pa.Table], facts: dict[str, Any]) -> tuple[int, int]:
    """Write videos' tables, one row group each, and facts about all; returns time steps written and vector size."""
    steps, width, writer = 0, 0, None
    try:
        for table in tables:
            if writer is None:  # only its schema has the facts: they name every video
                schema = table.schema.with_metadata({METADATA_KEY: json.dumps(facts)})
                writer = pq.ParquetWriter(path, schema, compression="zstd")
                width = table.schema.field("features").type.list_size
            writer.write_table(table, row_group_size=max(1, len(table)))
            steps += table["kind"].to_pylist().count("time_step")
    finally:
        if writer is not None:
            writer.close()
    return steps, width


def write_npz(path: Path, tables: Iterable[pa.Table]) -> tuple[int, int]:
    """Write videos' tables as flat arrays; returns time steps written and vector size."""
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
