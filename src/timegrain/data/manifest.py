"""The manifest: one row per video, as a Parquet file that ten thousand workers can share.

A manifest is written by ``timegrain manifest scan`` (or ``timegrain prepare``) and read by everything that needs
videos. Its columns:

============================  =======  ==========================================================================
``path``                      text     relative to the manifest's folder when inside it, else absolute; or a URL; or a part
                                       of either, ``SHARD#MEMBER@OFFSET+SIZE`` (:mod:`timegrain.data.location`)
``num_frames``                int      exact number of frames, presentation order
``fps``                       float    mean frames per second
``duration_seconds``          float
``width``, ``height``         int      pixels as displayed (after rotation)
``codec``                     text
``split``, ``label``          text     null where there is none
``group``                     text     videos of one group (one recording, one person) never belong apart
``error``                     text     one line why the video can't be used; null for a usable video
============================  =======  ==========================================================================

Further columns are kept as they are. Key-value metadata of the file carries the coverage of the data set that it was
made from (``Manifest.coverage``), so that a result can say how much of a benchmark was present.

In memory a manifest is an Arrow table. Opening one writes it once, uncompressed, into the cache folder
(``TIMEGRAIN_CACHE``, else the user's cache) and maps that file: workers share the pages, and a pickled manifest is two
file names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timegrain.data.location import absolute, relative
from timegrain.data.manifest_table import SCHEMA, conform, map_arrow, mapped_copy, spill
from timegrain.files import atomic_path

_COVERAGE_KEY = b"timegrain.coverage"


@dataclass(frozen=True)
class VideoRow:
    """One video of a manifest.

    Attributes:
        path: Absolute path, URL, or part of either; what :func:`timegrain.data.decoding.open_video` takes.
        num_frames: Number of frames; 0 where the video could not be read.
        fps: Mean frames per second; 0 where unknown.
        duration_seconds: Duration; 0 where unknown.
        width: Pixels, as displayed.
        height: Pixels, as displayed.
        codec: Name of the codec; empty where unknown.
        split: Split, or None.
        label: Class name, or None.
        group: Group, or None.
        error: One line why the video can't be used, or None.
        extra: Values of the manifest's further columns.
    """

    path: str
    num_frames: int
    fps: float
    duration_seconds: float
    width: int
    height: int
    codec: str
    split: str | None = None
    label: str | None = None
    group: str | None = None
    error: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


class _Extra(Mapping[str, Any]):
    """A row's further columns, each turned into Python values when asked for: a movie may have thousands of boxes."""

    def __init__(self, table: pa.Table, position: int, names: list[str]) -> None:
        self._table, self._position, self._names = table, position, names

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._table[name][self._position].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # the values travel, not the table


class Manifest:
    """A list of videos, in a fixed order, of which a part may be selected.

    Use ``Manifest.open`` or ``Manifest.from_rows``. ``len``, indexing and iteration see the selected rows only.
    """

    def __init__(self, table: pa.Table, path: Path | None, folder: Path, mapped_file: Path | None = None) -> None:
        """Wrap a table that already has the manifest's columns; see ``open`` and ``from_rows``."""
        self._table: pa.Table | None = table
        self._path = path
        self._folder = folder
        self._mapped_file = mapped_file
        self._split: str | None = None
        self._usable = False
        self._taken: npt.NDArray[np.int64] | None = None  # row numbers that `take` chose
        self._positions: npt.NDArray[np.int64] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Manifest:
        """Open a Parquet manifest.

        Args:
            path: The file.

        Returns:
            All its rows, usable or not.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it isn't a Parquet file, lacks a column, has one of the wrong type, or has no row.
        """
        path = Path(path).absolute()
        if path.is_dir():
            raise ValueError(
                f"{path} is a folder, not a manifest. `timegrain manifest scan {path} --out m.parquet` makes one."
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"no manifest at {path}. `timegrain manifest scan FOLDER --out {path.name}` makes one."
            )
        mapped_file = mapped_copy(path)
        return cls(map_arrow(mapped_file), path, path.parent, mapped_file)

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        folder: str | os.PathLike[str],
        coverage: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """A manifest in memory.

        Args:
            rows: One mapping per video with (some of) the manifest's columns, and any further ones.
            folder: Where relative paths start.
            coverage: How much of a data set is present (JSON values); carried in the file's metadata.

        Returns:
            The manifest; ``write`` stores it.

        Raises:
            ValueError: If there is no row, a row has no path, or a value has the wrong type.
        """
        rows = list(rows)
        if not rows:
            raise ValueError("a manifest needs at least one video")
        extra = {name: None for row in rows for name in row if name not in SCHEMA.names}
        try:
            columns = [pa.array([row.get(name) for row in rows], SCHEMA.field(name).type) for name in SCHEMA.names]
            columns += [pa.array([row.get(name) for row in rows]) for name in extra]
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"a manifest row has a value of the wrong type: {error}") from error
        table = pa.Table.from_arrays(columns, names=[*SCHEMA.names, *extra])
        if coverage is not None:
            table = table.replace_schema_metadata({_COVERAGE_KEY: json.dumps(dict(coverage))})
        return cls(conform(table, "the rows given"), None, Path(folder).absolute())

    @property
    def path(self) -> Path | None:
        """The Parquet file; None for a manifest that was made in memory and not written."""
        return self._path

    @property
    def coverage(self) -> dict[str, Any] | None:
        """How much of a data set the manifest covers, as its maker recorded it; None where nothing was recorded."""
        stored = (self._all_rows.schema.metadata or {}).get(_COVERAGE_KEY)
        return None if stored is None else json.loads(stored)

    @property
    def class_names(self) -> tuple[str, ...]:
        """All labels of the file, sorted; the same whatever is selected, so that class numbers agree between splits."""
        return tuple(sorted(value for value in pc.unique(self._all_rows["label"]).to_pylist() if value is not None))

    @property
    def splits(self) -> dict[str, int]:
        """Number of selected videos of each split, by name; videos without a split aren't counted."""
        counts = pc.value_counts(self.column("split")).to_pylist()
        return dict(sorted((str(c["values"]), int(c["counts"])) for c in counts if c["values"] is not None))

    @property
    def column_names(self) -> list[str]:
        """The names of all columns, the manifest's own first."""
        return list(self._all_rows.column_names)

    def class_indices(self) -> npt.NDArray[np.int64]:
        """Position of each selected video's label in ``class_names``, shape (len,); -1 where it has none."""
        found = pc.index_in(self.column("label"), pa.array(self.class_names, pa.string()))
        indices: npt.NDArray[np.int64] = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return indices

    def column(self, name: str) -> pa.Array:
        """One column of the selected rows; ``path`` as absolute paths.

        Raises:
            ValueError: If there is no such column.
        """
        if name not in self._all_rows.column_names:
            raise ValueError(f"{self._name} has no column {name!r}; it has {', '.join(self._all_rows.column_names)}")
        values = self._all_rows[name]
        positions = self._selected
        if positions is not None:
            values = values.take(pa.array(positions))
        array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if name == "path":
            array = pa.array([self._absolute(value) for value in array.to_pylist()], pa.string())
        return array

    def select(self, split: str | None = None, usable: bool = True) -> Manifest:
        """The videos of one split, and of these the usable ones.

        Args:
            split: Name of the split; None takes all.
            usable: Leave out the videos with an ``error``.

        Returns:
            A manifest of the same file with fewer rows.

        Raises:
            ValueError: If nothing is left; the message says what there is.
        """
        if self._split is not None and split is not None and split != self._split:
            raise ValueError(f"{self._name}: split {self._split!r} is already selected, so {split!r} can't be")
        selected = Manifest(self._all_rows, self._path, self._folder, self._mapped_file)
        selected._taken = self._taken
        selected._split = split if split is not None else self._split
        selected._usable = usable or self._usable
        if len(selected) == 0:
            everything = Manifest(self._all_rows, self._path, self._folder)
            everything._taken = self._taken
            if split is not None and split not in everything.splits:
                there = (
                    ", ".join(f"{name} ({count})" for name, count in everything.splits.items()) or "no splits at all"
                )
                raise ValueError(f"{self._name} has no video in split {split!r}; it has {there}")
            where = "" if selected._split is None else f" in split {selected._split!r}"
            everything._split = selected._split
            reason = next(value for value in everything.column("error").to_pylist() if value)
            raise ValueError(f"{self._name} has no usable video{where}: each has an error, such as {reason!r}")
        return selected

    def with_split(self, column: str) -> Manifest:
        """The same manifest, all its rows, where another column says which split a video belongs to.

        Args:
            column: Such as ``split2``, one of UCF101's and HMDB51's own divisions.

        Raises:
            ValueError: There is no such column of texts; the message says which there are.
        """
        table = self._all_rows
        others = [f.name for f in table.schema if f.name.startswith("split") and pa.types.is_string(f.type)]
        if column not in others:
            raise ValueError(f"{self._name} has no column {column!r} to divide by; it has {', '.join(others)}")
        table = table.set_column(table.schema.get_field_index("split"), "split", table[column])
        return Manifest(table, self._path, self._folder)

    def take(self, rows: Sequence[int]) -> Manifest:
        """Some of the selected videos, by their numbers, in the order given.

        Raises:
            ValueError: If none is named.
            IndexError: If there is no such video.
        """
        numbers = np.asarray(rows, np.int64)
        if not len(numbers):
            raise ValueError(f"{self._name}: no video is left")
        taken = Manifest(self._all_rows, self._path, self._folder, self._mapped_file)
        taken._taken = (np.arange(len(self)) if self._selected is None else self._selected)[numbers]
        return taken

    def with_errors(self, reasons: Mapping[str, str]) -> Manifest:
        """The same manifest, all its rows, where more videos have an ``error``.

        Args:
            reasons: Why a video can't be used, by its absolute path.
        """
        table = self._all_rows
        paths = [self._absolute(stored) for stored in table["path"].to_pylist()]
        errors = [reasons.get(path, old) for path, old in zip(paths, table["error"].to_pylist(), strict=True)]
        column = pa.array(errors, pa.string())
        table = table.set_column(table.schema.get_field_index("error"), "error", column)
        return Manifest(table, self._path, self._folder)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the selected rows as Parquet; whole or not at all.

        Args:
            path: The file; paths inside its folder are stored relative to it.

        Returns:
            The file's absolute path.
        """
        path = Path(path).absolute()
        table = self._all_rows if self._selected is None else self._all_rows.take(pa.array(self._selected))
        paths = [relative(self._absolute(value), path.parent) for value in table["path"].to_pylist()]
        table = table.set_column(table.schema.get_field_index("path"), "path", pa.array(paths, pa.string()))
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        return path

    def __len__(self) -> int:
        return self._all_rows.num_rows if self._selected is None else len(self._selected)

    def __getitem__(self, index: int) -> VideoRow:
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {index} of a manifest of {len(self)}")
        number %= len(self)
        position = number if self._selected is None else int(self._selected[number])
        table = self._all_rows
        known = {name: table[name][position].as_py() for name in SCHEMA.names}
        known["path"] = self._absolute(known["path"])
        for name, empty in (
            ("num_frames", 0),
            ("fps", 0.0),
            ("duration_seconds", 0.0),
            ("width", 0),
            ("height", 0),
            ("codec", ""),
        ):
            known[name] = empty if known[name] is None else known[name]
        others = [name for name in table.column_names if name not in known]
        return VideoRow(**known, extra=_Extra(table, position, others))

    def __iter__(self) -> Iterator[VideoRow]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Manifest({self._name}, {len(self)} videos)"

    def __getstate__(self) -> dict[str, Any]:
        if self._mapped_file is None:  # made in memory: give it a file that the workers can map
            self._mapped_file = spill(self._all_rows)
        state = {name: value for name, value in vars(self).items() if name not in ("_table", "_positions")}
        return {**state, "_table": None, "_positions": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def _name(self) -> str:
        return str(self._path or "manifest in memory")

    @property
    def _all_rows(self) -> pa.Table:
        if self._table is None:
            assert self._mapped_file is not None
            if self._mapped_file.is_file():
                self._table = map_arrow(self._mapped_file)
            elif self._path is not None:  # another machine, or an emptied cache
                self._table = Manifest.open(self._path)._all_rows
            else:
                raise FileNotFoundError(f"{self._mapped_file}, the file of a manifest sent between processes, is gone")
        return self._table

    @property
    def _selected(self) -> npt.NDArray[np.int64] | None:
        """Row numbers of the selection; None stands for all rows."""
        if self._positions is None and (self._usable or self._split is not None):
            keep = pc.is_null(self._all_rows["error"]) if self._usable else None
            if self._split is not None:
                in_split = pc.fill_null(pc.equal(self._all_rows["split"], self._split), False)
                keep = in_split if keep is None else pc.and_(keep, in_split)
            kept = np.asarray(keep)
            self._positions = np.flatnonzero(kept) if self._taken is None else self._taken[kept[self._taken]]
        return self._taken if self._positions is None else self._positions

    def _absolute(self, stored: str) -> str:
        return absolute(stored, self._folder)
