"""The manifest on disk and in memory: its columns, their checks, and the memory-mapped copy that workers share."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timegrain.files import atomic_path

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("duration_seconds", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("codec", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("error", pa.string()),
    ]
)
_OPTIONAL = ("codec", "split", "label", "group", "error")  # absent = null everywhere
_CACHE_DAYS = 30


def read_parquet(path: Path) -> pa.Table:
    """Read and check a Parquet manifest.

    Raises:
        ValueError: If the file isn't Parquet, is damaged, has no row, or isn't a manifest (``conform``).
    """
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            makes = f"shards {path}" if path.suffix == ".tar" else "scan FOLDER"
            raise ValueError(
                f"{path} isn't a Parquet file. `timegrain manifest {makes} --out m.parquet` makes a manifest."
            )
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}. Make it again with `timegrain manifest scan`.") from error
    if table.num_rows == 0:
        raise ValueError(f"{path} lists no video")
    return conform(table, str(path))


def conform(table: pa.Table, name: str) -> pa.Table:
    """Check the columns of ``table`` and bring them to the manifest's types and order."""
    missing = [column for column in SCHEMA.names if column not in table.column_names and column not in _OPTIONAL]
    if missing:
        raise ValueError(
            f"{name} isn't a manifest: it lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} "
            f"(it has {', '.join(table.column_names)})"
        )
    columns: dict[str, pa.ChunkedArray] = {}
    for wanted in SCHEMA:
        if wanted.name not in table.column_names:
            columns[wanted.name] = pa.chunked_array([pa.nulls(table.num_rows, wanted.type)])
            continue
        values = table[wanted.name]
        stored = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        is_text = pa.types.is_string(stored) or pa.types.is_large_string(stored)
        fits = is_text if wanted.type == pa.string() else pa.types.is_integer(stored) or pa.types.is_floating(stored)
        if not (fits or pa.types.is_null(stored)):
            kind = "text" if wanted.type == pa.string() else "numbers"
            raise ValueError(f"{name}: column {wanted.name!r} holds {stored}, but should hold {kind}")
        try:
            columns[wanted.name] = values.cast(wanted.type)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{name}: column {wanted.name!r} should hold {wanted.type}: {error}") from error
    error_text = columns["error"]
    columns["error"] = pc.if_else(pc.equal(error_text, ""), pa.scalar(None, pa.string()), error_text)
    _check_usable_rows(columns, name)
    for column in table.column_names:
        columns.setdefault(column, table[column])
    return pa.table(columns, metadata=table.schema.metadata)


def _check_usable_rows(columns: Mapping[str, pa.ChunkedArray], name: str) -> None:
    """A usable video needs a path and positive numbers; say which row lacks them."""
    usable = pc.is_null(columns["error"])
    for column in ("path", "num_frames", "fps", "width", "height"):
        if column == "path":
            bad = pc.is_null(columns[column])
        else:
            bad = pc.and_(usable, pc.invert(pc.fill_null(pc.greater(columns[column], 0), False)))
        row = pc.index(bad, True).as_py()
        if row >= 0:
            video = columns["path"][row].as_py()
            value = columns[column][row].as_py()
            raise ValueError(f"{name}: row {row} ({video}) has no error and {column} = {value}; it should be positive")


@functools.cache
def _private_folder() -> Path:
    """A folder of this process alone, for machines whose home can't be written; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="timegrain-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _cache_folder() -> Path:
    """Where the Arrow copies live: ``TIMEGRAIN_CACHE``, else the user's cache."""
    home = os.environ.get("TIMEGRAIN_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "timegrain"
    )
    folder = Path(home) / "manifests"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _private_folder()
    return folder if os.access(folder, os.W_OK) else _private_folder()


def mapped_copy(path: Path) -> Path:
    """The uncompressed Arrow copy of a Parquet manifest, made now if there is none of this state of the file."""
    state = path.stat()
    key = f"{path}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}"
    copy = _cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
    if copy.is_file():
        os.utime(copy)
    else:
        _forget_old_copies(copy.parent)
        with atomic_path(copy) as temporary:
            temporary.write_bytes(_arrow_bytes(read_parquet(path)))
    return copy


def spill(table: pa.Table) -> Path:
    """Write a table made in memory where workers can map it; named by its content."""
    data = _arrow_bytes(table)
    path = _cache_folder() / f"{hashlib.sha256(data).hexdigest()[:32]}.arrow"
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    return path


def _forget_old_copies(folder: Path) -> None:
    oldest = time.time() - _CACHE_DAYS * 86400
    for entry in folder.glob("*.arrow"):
        try:
            if entry.stat().st_mtime < oldest:
                entry.unlink()
        except OSError:  # another process removed it first, or still maps it (Windows): leave it
            continue


def _arrow_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def map_arrow(path: Path) -> pa.Table:
    """The table of an Arrow file; its pages are read when touched and shared between processes."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
