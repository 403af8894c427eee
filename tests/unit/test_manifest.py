"""The manifest class: columns, selection, errors, and what a worker pays for it."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timegrain.data import manifest_table
from timegrain.data.manifest import Manifest, VideoRow
from timegrain.data.manifest_table import SCHEMA


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TIMEGRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))


def row(path: str, **values: object) -> dict[str, object]:
    numbers = {"num_frames": 50, "fps": 25.0, "duration_seconds": 2.0, "width": 64, "height": 48, "codec": "h264"}
    return {"path": path, **numbers, **values}


def four_rows() -> list[dict[str, object]]:
    return [
        row("a/1.mp4", split="train", label="jump"),
        row("a/2.mp4", split="test", label="jump"),
        row("b/3.mp4", split="train", label="bend", group="g1", colour="red"),
        {"path": "b/4.mp4", "split": "train", "label": "wave", "error": "no moov atom"},
    ]


def write(folder: Path, rows: list[dict[str, object]] | None = None) -> Path:
    return Manifest.from_rows(rows or four_rows(), folder).write(folder / "m.parquet")


def test_round_trip_gives_the_rows_back(tmp_path):
    manifest = Manifest.open(write(tmp_path))
    assert len(manifest) == 4
    assert manifest.path == tmp_path / "m.parquet"
    first, third, broken = manifest[0], manifest[2], manifest[-1]
    assert first == VideoRow(
        str(tmp_path / "a/1.mp4"), 50, 25.0, 2.0, 64, 48, "h264", "train", "jump", None, None, {"colour": None}
    )
    assert third.group == "g1"
    assert third.extra == {"colour": "red"}
    assert (len(third.extra), list(third.extra), "size" in third.extra) == (1, ["colour"], False)
    with pytest.raises(KeyError, match="size"):
        third.extra["size"]
    assert pickle.loads(pickle.dumps(third)) == third
    assert len(pickle.dumps(third)) < 600
    assert (broken.num_frames, broken.fps, broken.codec, broken.error) == (0, 0.0, "", "no moov atom")
    assert [video.path for video in manifest] == manifest.column("path").to_pylist()
    with pytest.raises(IndexError):
        manifest[4]


def test_paths_are_stored_relative_inside_the_folder_and_absolute_outside(tmp_path):
    outside = str(tmp_path / "elsewhere" / "x.mp4")
    manifest = Manifest.from_rows([row("in/y.mp4"), row(outside)], tmp_path / "videos")
    path = manifest.write(tmp_path / "videos" / "m.parquet")
    assert pq.read_table(path)["path"].to_pylist() == ["in/y.mp4", outside]
    moved = manifest.write(tmp_path / "m.parquet")
    assert pq.read_table(moved)["path"].to_pylist() == ["videos/in/y.mp4", "elsewhere/x.mp4"]
    assert [video.path for video in Manifest.open(moved)] == [str(tmp_path / "videos/in/y.mp4"), outside]


def test_a_folder_that_moves_takes_its_manifest_along(tmp_path):
    (tmp_path / "old").mkdir()
    write(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert Manifest.open(tmp_path / "new/m.parquet")[0].path == str(tmp_path / "new/a/1.mp4")


def test_select_by_split_and_use(tmp_path):
    manifest = Manifest.open(write(tmp_path))
    assert manifest.splits == {"test": 1, "train": 3}
    train = manifest.select("train")
    assert [Path(video.path).name for video in train] == ["1.mp4", "3.mp4"]
    assert len(manifest.select("train", usable=False)) == 3
    assert len(manifest.select()) == 3
    assert len(manifest.select().select("test")) == 1
    assert train.column("colour").to_pylist() == [None, "red"]


def test_class_numbers_agree_between_splits(tmp_path):
    manifest = Manifest.open(write(tmp_path))
    assert manifest.class_names == manifest.select("test").class_names == ("bend", "jump", "wave")
    assert manifest.class_indices().tolist() == [1, 1, 0, 2]
    assert manifest.select("train").class_indices().tolist() == [1, 0]
    unlabelled = Manifest.from_rows([row("a"), row("b", label="x")], tmp_path)
    assert unlabelled.class_indices().tolist() == [-1, 0]


def test_nothing_left_says_what_there_is(tmp_path):
    manifest = Manifest.open(write(tmp_path))
    with pytest.raises(ValueError, match=r"no video in split 'val'; it has test \(1\), train \(3\)"):
        manifest.select("val")
    with pytest.raises(ValueError, match=r"no video in split 'test'; it has train \(2\)"):
        manifest.select("train").take([0, 1]).select("test")
    broken = Manifest.from_rows([{"path": "x", "split": "val", "error": "cut short"}], tmp_path)
    with pytest.raises(ValueError, match="no usable video in split 'val': each has an error, such as 'cut short'"):
        broken.select("val")
    with pytest.raises(ValueError, match="no usable video: each has an error"):
        broken.select()
    with pytest.raises(ValueError, match="no splits at all"):
        Manifest.from_rows([row("x")], tmp_path).select("train")
    with pytest.raises(ValueError, match="no column 'speed'; it has path"):
        manifest.column("speed")


def test_only_the_split_of_the_broken_video_is_blamed(tmp_path):
    rows = [row("a", split="train"), {"path": "b", "split": "train", "error": "first"}]
    rows += [{"path": "c", "split": "val", "error": "second"}]
    with pytest.raises(ValueError, match="such as 'second'"):
        Manifest.from_rows(rows, tmp_path).select("val")


def test_coverage_travels_with_the_file(tmp_path):
    coverage = {"found": 19404, "listed": 19906}
    path = Manifest.from_rows(four_rows(), tmp_path, coverage).write(tmp_path / "m.parquet")
    manifest = Manifest.open(path)
    assert manifest.coverage == manifest.select("train").coverage == coverage
    again = manifest.select("train").write(tmp_path / "train.parquet")
    assert Manifest.open(again).coverage == coverage
    assert Manifest.from_rows(four_rows(), tmp_path).coverage is None


def test_a_rewritten_file_is_read_anew(tmp_path):
    assert len(Manifest.open(write(tmp_path))) == 4
    assert len(Manifest.open(write(tmp_path, [row("only.mp4")]))) == 1


def store(file: Path, **columns: pa.Array | None) -> Path:
    table = pa.Table.from_pylist([row("a.mp4")])
    for name, values in columns.items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table if values is None else table.append_column(name, values)
    pq.write_table(table, file)
    return file


def test_a_small_hand_made_file_is_enough(tmp_path):
    path = store(tmp_path / "m.parquet", error=pa.array([""]), label=pa.array(["x"]).dictionary_encode(), codec=None)
    video = Manifest.open(path)[0]
    assert (video.label, video.error, video.codec, video.split) == ("x", None, "", None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"fps": None, "width": None}, "lacks the columns fps, width"),
        ({"path": pa.array([3])}, "'path' holds int64, but should hold text"),
        ({"fps": pa.array(["fast"])}, "'fps' holds string, but should hold numbers"),
        ({"num_frames": pa.array([3.5])}, "'num_frames' should hold int64"),
        ({"num_frames": pa.array([0])}, r"row 0 \(a.mp4\) has no error and num_frames = 0"),
        ({"fps": pa.array([float("nan")])}, "has no error and fps = nan"),
        ({"height": pa.array([None], pa.int64())}, "has no error and height = None"),
    ],
)
def test_a_wrong_file_is_named_with_its_fault(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message) as caught:
        Manifest.open(store(tmp_path / "bad.parquet", **columns))
    assert "bad.parquet" in str(caught.value)


def test_files_that_are_no_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest at .*nowhere.parquet"):
        Manifest.open(tmp_path / "nowhere.parquet")
    with pytest.raises(ValueError, match="is a folder, not a manifest"):
        Manifest.open(tmp_path)
    text = tmp_path / "labels.csv"
    text.write_text("path,label\n")
    with pytest.raises(ValueError, match=r"labels.csv isn't a Parquet file"):
        Manifest.open(text)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(write(tmp_path).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut.parquet is damaged"):
        Manifest.open(cut)
    empty = tmp_path / "empty.parquet"
    pq.write_table(SCHEMA.empty_table(), empty)
    with pytest.raises(ValueError, match="lists no video"):
        Manifest.open(empty)
    with pytest.raises(ValueError, match="at least one video"):
        Manifest.from_rows([], tmp_path)
    with pytest.raises(ValueError, match="wrong type"):
        Manifest.from_rows([row("x", fps="fast")], tmp_path)


def big_manifest(folder: Path, num_videos: int = 10_000) -> Manifest:
    rows = [
        row(f"class_{i % 50:02d}/{'name' * 10}_{i:06d}.mp4", split="train", label=f"{i % 50}")
        for i in range(num_videos)
    ]
    return Manifest.from_rows(rows, folder)


@pytest.mark.parametrize("stored", [True, False])
def test_a_pickled_manifest_is_small_and_equal(tmp_path, stored):
    manifest = big_manifest(tmp_path)
    if stored:
        manifest = Manifest.open(manifest.write(tmp_path / "m.parquet"))
    selected = manifest.select("train")
    data = pickle.dumps(selected)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert len(copy) == 10_000
    assert copy[1234] == selected[1234]


def test_a_pickle_finds_its_file_again_when_the_cache_is_emptied(tmp_path):
    data = pickle.dumps(Manifest.open(write(tmp_path)).select("train"))
    for entry in manifest_table._cache_folder().iterdir():
        entry.unlink()
    assert [Path(video.path).name for video in pickle.loads(data)] == ["1.mp4", "3.mp4"]


def test_a_home_that_cannot_be_written_does_not_stop_anything(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TIMEGRAIN_CACHE", str(tmp_path / "file"))
    assert len(pickle.loads(pickle.dumps(Manifest.open(write(tmp_path))))) == 4


def test_old_copies_are_removed_from_the_cache(tmp_path):
    import os

    Manifest.open(write(tmp_path))
    (old,) = manifest_table._cache_folder().glob("*.arrow")
    os.utime(old, (0, 0))
    Manifest.open(write(tmp_path, [row("new.mp4")]))
    assert not old.exists()
    assert len(list(manifest_table._cache_folder().glob("*.arrow"))) == 1


def _measure(data: bytes, results) -> None:
    """In a worker: private memory that holding and reading the manifest costs, and whether it is mapped from a file."""

    def private_kilobytes() -> int:  # pages that belong to no file; those of a mapped file are everybody's
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

    warm = Manifest.from_rows([row("x")], "/")  # pyarrow's own start-up isn't the manifest's cost
    assert warm[0].path == "/x"
    pa.array(np.arange(10))
    before = private_kilobytes()
    manifest = pickle.loads(data)
    names = sum(len(manifest[i].path) for i in range(0, len(manifest), 101))
    mapped = any(".arrow" in line for line in Path("/proc/self/maps").read_text().splitlines())
    results.put((private_kilobytes() - before, mapped, names))


@pytest.mark.multiprocess
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's memory counters")
def test_workers_share_the_memory(tmp_path):
    manifest = Manifest.open(big_manifest(tmp_path, 200_000).write(tmp_path / "m.parquet"))
    table_kilobytes = manifest._all_rows.nbytes / 1024
    assert table_kilobytes > 20_000
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_measure, args=(pickle.dumps(manifest), results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    measured = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    for private, mapped, names in measured:
        assert mapped
        assert names > 0
        assert private < table_kilobytes / 10


def test_another_column_as_split(tmp_path):
    names = [f"{i}.mp4" for i in range(3)]
    common = {"num_frames": 9, "fps": 25.0, "width": 8, "height": 8}
    divisions = (["train", "train", "test"], ["test", "train", "train"])
    rows = [
        {"path": name, **common, "split": one, "split2": two, "splits": 3}
        for name, one, two in zip(names, *divisions, strict=True)
    ]
    manifest = Manifest.from_rows(rows, tmp_path)
    other = manifest.with_split("split2")
    assert [row.path for row in other.select(split="test")] == [str(tmp_path / "0.mp4")]
    assert [row.path for row in manifest.select(split="test")] == [str(tmp_path / "2.mp4")]
    for column in ("split3", "splits"):
        with pytest.raises(ValueError, match="it has split, split2"):
            manifest.with_split(column)
