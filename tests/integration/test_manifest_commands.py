"""`timegrain manifest scan` and `check` on real files, odd files, broken files and interrupted runs."""

from __future__ import annotations

import csv
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from conftest import make_video, moving_square
from timegrain.cli import main
from timegrain.data import check as check_module
from timegrain.data import journal, probing
from timegrain.data.decoding import VideoError, open_video, probe
from timegrain.data.isolated import Failure, run_isolated
from timegrain.data.manifest import Manifest
from timegrain.data.scan import scan
from timegrain.sampling import contained

pytestmark = pytest.mark.multiprocess


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TIMEGRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(video_folder, tmp_path):
    return Path(shutil.copytree(video_folder, tmp_path / "videos"))


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def run_json(capsys, *arguments) -> dict:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


# ---- scan ----------------------------------------------------------------------------------------------------------


def test_scan_lists_what_is_there(folder, capsys):
    (folder / "notes.txt").write_text("not a video")
    (folder / "right" / "._v0.mp4").write_bytes(b"a Mac's shadow file")
    code, out, _ = run(capsys, "manifest", "scan", folder, "--out", folder / "m.parquet")
    assert code == 0
    assert "videos    8: 8 usable" in out
    assert "labels    2: left (4), right (4)" in out
    assert "broken    0" in out
    manifest = Manifest.open(folder / "m.parquet")
    assert [row.path for row in manifest] == sorted(str(path) for path in folder.glob("*/v?.mp4"))
    first = manifest[0]
    with open_video(first.path) as reader:
        assert first.num_frames == len(list(reader.stream())) == 45
    assert (first.width, first.height, first.codec, first.fps) == (64, 48, "h264", 25.0)
    assert first.extra["size_bytes"] == Path(first.path).stat().st_size
    assert [path.name for path in folder.iterdir() if "rows" in path.name] == []


def broken_files(folder: Path) -> dict[str, str]:
    """The kinds of broken files that no collection has, and a word of the reason that each should give."""
    good = make_video(folder / "good.mp4", moving_square(60), options={"g": "12"}).read_bytes()
    faststart = folder / "faststart.mp4"
    import av

    with (
        av.open(str(folder / "good.mp4")) as source,
        av.open(str(faststart), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    head_first = faststart.read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "no_moov.mp4").write_bytes(good[: good.index(b"moov") - 4])
    (folder / "cut.mp4").write_bytes(head_first[: int(len(head_first) * 0.7)])
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "zeros.avi").write_bytes(bytes(100_000))
    return {"empty.mp4": "empty", "no_moov.mp4": "", "cut.mp4": "", "text.mp4": "", "zeros.avi": ""}


def test_broken_files_get_a_row_with_a_reason(tmp_path, capsys):
    reasons = broken_files(tmp_path)
    os.symlink(tmp_path / "gone.mp4", tmp_path / "dangling.mp4")
    summary = run_json(capsys, "manifest", "scan", tmp_path, "--out", tmp_path / "m.parquet")
    rows = {Path(row.path).name: row for row in Manifest.open(tmp_path / "m.parquet")}
    assert rows["good.mp4"].error is None
    assert rows["faststart.mp4"].num_frames == 60
    for name, word in {**reasons, "dangling.mp4": "No such file"}.items():
        assert rows[name].error, name
        assert "\n" not in rows[name].error
        assert word in rows[name].error
        assert str(tmp_path) not in rows[name].error
    assert summary["broken"] == len(summary["errors"]) == 6
    assert (summary["videos"], summary["usable"]) == (8, 2)


def test_the_known_odd_files_are_read_as_measured_or_explained(shared, tmp_path, capsys):
    """All files of the collection, also those without a video's ending, against an independent full decode."""
    better = {  # where the measurement was wrong or silent, and why
        "exoplayer/h265_with_metadata_track.mp4": "rotated by 90 degrees: size as displayed",
        "exoplayer/sample_with_color_info.mp4": "rotated by 90 degrees: size as displayed",
        "fate/svq3/svq3_watermark.mp4": "metadata that isn't UTF-8 stopped the measurement; the pictures decode",
    }
    edge = shared / "data" / "edge"
    with (edge / "INDEX.tsv").open() as file:
        index = {line["path"]: line for line in csv.DictReader(file, delimiter="\t")}
    summary = run_json(capsys, "manifest", "scan", edge, "--out", tmp_path / "m.parquet", "--all-files")
    rows = {str(Path(row.path).relative_to(edge)): row for row in Manifest.open(tmp_path / "m.parquet")}
    assert rows.keys() == index.keys() | {"INDEX.tsv"}
    assert summary["videos"] == len(index) + 1
    for name, line in index.items():
        row = rows[name]
        if line["error"] or line["frames_decoded"] in ("", "0"):
            assert row.error or name in better, name
            if row.error:
                assert row.error.splitlines() == [row.error]
                assert "longer than" not in row.error, name
                continue
        assert row.error is None, name
        assert name in better or row.num_frames == int(line["frames_decoded"]), name
        size = f"{row.width}x{row.height}"
        assert size == line["size"] or (name in better and (line["size"] in ("x", "x".join(size.split("x")[::-1]))))
        assert row.codec == (line["codec"].replace("libdav1d", "av1") or row.codec)
        assert row.fps == pytest.approx(row.num_frames / row.duration_seconds)
        measured = float(line["fps"])
        if measured not in (0.0, 1000.0):  # 0: not known; 1000: a container's clock, not a rate
            irregular = line["vfr"] == "True" or name == "fate/rv20/sipr_16k.mp4"
            assert row.fps == pytest.approx(measured, rel=0.4 if irregular else 0.02), name
    assert {row.error is None for name, row in rows.items() if name in better} == {True}
    assert rows["INDEX.tsv"].error


def test_memory_does_not_grow_with_the_number_of_files(shared):
    """Every odd file again and again in one process: a leak would show in every round, one step of the heap does not."""
    files = probing.find_files(shared / "data" / "edge")
    ((_, growth),) = run_isolated(_growth, [[str(path) for path in files]], lambda item: 240.0, 1)
    assert not isinstance(growth, Failure), growth
    assert growth < 5_000


def _growth(files: list[str]) -> int:
    """Kilobytes by which the process grows in the quietest of the rounds after the first; the heap settles in some."""
    sizes = []
    for _ in range(7):
        for path in files:
            try:
                probe(path)
            except VideoError:
                continue
        status = Path("/proc/self/status").read_text()
        sizes.append(int(status.split("VmRSS:")[1].split()[0]))
    return min(after - before for before, after in pairwise(sizes))


def test_an_interrupted_scan_continues_where_it_was(folder, monkeypatch, capsys):
    out = folder / "m.parquet"

    def interrupted(items, description, total=None):
        for count, item in enumerate(items):
            if count == 3:
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(probing, "track", interrupted)
        assert run(capsys, "manifest", "scan", folder, "--out", out)[0] == 130
    assert not out.exists()
    rows = folder / "m.parquet.rows.jsonl"
    with rows.open("a") as file:
        file.write('{"path": "the line that was being wri')  # and the power went
    probed = []

    def counting(function, items, *rest):
        probed.extend(items)
        return run_isolated(function, items, *rest)

    monkeypatch.setattr(probing, "run_isolated", counting)
    summary = run_json(capsys, "manifest", "scan", folder, "--out", out)
    assert (len(probed), summary["read_before"], summary["usable"]) == (5, 3, 8)
    assert not rows.exists()
    table = Manifest.open(out).column("num_frames").to_pylist()
    assert run_json(capsys, "manifest", "scan", folder, "--out", out, "--restart")["read_before"] == 0
    assert Manifest.open(out).column("num_frames").to_pylist() == table


def test_a_second_scan_reads_new_and_changed_files_only(folder, capsys):
    out = folder / "m.parquet"
    scan(folder, out=out)
    make_video(folder / "left" / "new.mp4", moving_square(33))
    make_video(folder / "left" / "v1.mp4", moving_square(44))
    (folder / "right" / "v0.mp4").unlink()
    capsys.readouterr()
    summary = run_json(capsys, "manifest", "scan", folder, "--out", out)
    assert (summary["videos"], summary["read_before"]) == (8, 6)
    lengths = {Path(row.path).name: row.num_frames for row in Manifest.open(out)}
    assert (lengths["new.mp4"], lengths["v1.mp4"]) == (33, 44)
    assert "v0.mp4" not in lengths


def test_splits_and_labels_from_folders_and_option(video_folder, tmp_path, capsys):
    for split, name in (("train", "right"), ("test", "left")):
        shutil.copytree(video_folder / name, tmp_path / "videos" / split / name)
    summary = run_json(capsys, "manifest", "scan", tmp_path / "videos", "--out", tmp_path / "m.parquet")
    assert summary["splits"] == {"test": 4, "train": 4}
    assert summary["labels"] == {"left": 4, "right": 4}
    summary = run_json(capsys, "manifest", "scan", video_folder, "--out", tmp_path / "n.parquet", "--split", "val")
    assert summary["splits"] == {"val": 8}


def test_labels_from_a_csv(folder, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label,group,split\nright/v0.mp4,jump,g1,train\nleft/v1.mp4,bend,g2,\n")
    out = tmp_path / "m.parquet"
    summary = run_json(capsys, "manifest", "scan", folder, "--out", out, "--labels", labels, "--split", "test")
    assert summary["labels"] == {"bend": 1, "jump": 1}
    assert summary["unlabelled"] == 6
    assert summary["splits"] == {"test": 7, "train": 1}
    row = next(row for row in Manifest.open(out) if row.path.endswith("v0.mp4"))
    assert (row.label, row.group, row.split) == ("jump", "g1", "train")
    labels.write_text("path,label\nright/v0.mp4,jump\nright/gone.mp4,jump\nx.mp4,bend\n")
    code, _, err = run(capsys, "manifest", "scan", folder, "--out", out, "--labels", labels)
    assert code == 2
    assert "labels.csv line 3: right/gone.mp4 isn't among the videos" in err
    assert "nor are 1 others" in err
    summary = run_json(capsys, "manifest", "scan", folder, "--out", out, "--labels", labels, "--missing-ok")
    assert summary["labels"] == {"jump": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "m.parquet"], "nowhere is no folder"),
        ([".", "--out", "m.parquet"], "no video (a file with the ending of one; --all-files tries every file) in"),
        ([".", "--out", "."], "is a folder; name the manifest file"),
        ([".", "--out", "m.txt"], "a manifest's name ends in .parquet, such as m.parquet"),
        ([".", "--out", "m.parquet", "--workers", "0"], "at least one process"),
        ([".", "--out", "m.parquet", "--time-limit=-5"], "--time-limit -5: no file can be read in that time"),
        ([".", "--out", "m.parquet", "--labels", "none.csv", "--all-files"], "no label file at none.csv"),
    ],
)
def test_scan_says_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--all-files" in arguments:
        (tmp_path / "x.bin").write_bytes(b"x")
    code, out, err = run(capsys, "manifest", "scan", *arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert not (tmp_path / "m.parquet").exists()


def test_a_file_name_that_is_not_text_does_not_stop_the_scan(folder, capsys):
    shutil.copy(folder / "right" / "v0.mp4", os.fsencode(folder / "right") + b"/bad\xff.mp4")
    summary = run_json(capsys, "manifest", "scan", folder, "--out", folder / "m.parquet")
    assert (summary["videos"], summary["broken"]) == (9, 1)
    ((path, reason),) = summary["errors"].items()
    assert path.endswith(r"bad\xff.mp4")
    assert "rename it" in reason


def test_linked_folders_are_followed_once(folder, tmp_path, capsys):
    os.symlink(folder, folder / "left" / "loop")
    os.symlink(folder, tmp_path / "link")
    summary = run_json(capsys, "manifest", "scan", tmp_path / "link", "--out", tmp_path / "m.parquet")
    assert summary["videos"] == 8


def test_of_a_folder_and_a_link_to_it_the_first_by_name_is_taken(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.mp4").touch()
    for name in ("c", "a", "d"):  # in whatever order the disk lists them
        os.symlink(tmp_path / "b", tmp_path / name)
    assert probing.find_files(tmp_path) == [tmp_path / "a" / "x.mp4"]


# ---- check ---------------------------------------------------------------------------------------------------------


def test_check_finds_what_fails_after_the_scan(folder, capsys):
    manifest = folder / "m.parquet"
    scan(folder, out=manifest, split="train")
    whole = (folder / "left" / "v1.mp4").read_bytes()
    middle = len(whole) // 3
    (folder / "left" / "v1.mp4").write_bytes(
        whole[:middle] + bytes(200) + whole[middle + 200 :]
    )  # same length, damaged
    make_video(folder / "left" / "v3.mp4", moving_square(20))
    (folder / "right" / "v0.mp4").unlink()
    os.utime(folder / "right" / "v2.mp4")
    capsys.readouterr()
    out = folder / "checked.parquet"
    report = run_json(capsys, "manifest", "check", manifest, "--out", out, "--num-clips", "2")
    errors = {Path(path).name: reason for path, reason in report["errors"].items()}
    assert "has 20 frames, not 55 as when it was scanned" in errors["v3.mp4"]
    assert "v0.mp4" in errors
    assert report["newly_broken"] == len(errors)
    assert report["usable"] == 8 - len(errors)
    assert report["splits"]["train"]["videos"] == 8
    assert report["labels"]["right"] == {"videos": 4, "usable": 3, "share": 0.75}
    assert [Path(path).name for path in report["changed"] if "v2" in path] == ["v2.mp4"]
    assert sum(report["reasons"].values()) == len(errors)
    assert {row.error for row in Manifest.open(manifest)} == {None}  # the manifest itself is as it was
    assert {Path(row.path).name for row in Manifest.open(out) if row.error} == errors.keys()
    code, text, _ = run(capsys, "manifest", "check", manifest)  # in place
    assert code == 0
    assert "1 of 2 labels lack" in text or "2 of 2 labels lack" in text
    assert {Path(row.path).name for row in Manifest.open(manifest) if row.error} >= {"v0.mp4", "v3.mp4"}


def test_check_decodes_the_frames_that_training_draws(folder):
    manifest = scan(folder, out=folder / "m.parquet").select()
    item = check_module._frames_to_check(manifest[2], 2, 3, "long_short_contained", seed=7)
    rng = np.random.default_rng([7, 1, 2])
    long, short = contained(manifest[2].num_frames, (check_module.LONG, check_module.SHORT), rng)
    expected = np.unique(np.concatenate([long, short]) % manifest[2].num_frames)
    assert len(item.passes) == 3
    np.testing.assert_array_equal(item.passes[1], expected)
    check_module.decode(item)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.parquet"], "no manifest at"),
        (["m.parquet", "--num-clips", "0"], "at least one clip"),
        (["m.parquet", "--time-limit=0"], "give seconds above 0"),
        (["m.parquet", "--out=."], "is a folder; name the manifest file"),
        (["m.parquet", "--seed=-3"], "--seed -3: a seed is 0 or more"),
        (["m.parquet", "--sampler", "best"], "--sampler best: unknown; there are long_short_contained"),
        (["m.parquet", "--split", "val"], "has no video in split 'val'"),
    ],
)
def test_check_says_what_is_wrong(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    if arguments[0] == "m.parquet":
        row = {"path": "a.mp4", "num_frames": 3, "fps": 1.0, "duration_seconds": 3.0, "width": 2, "height": 2}
        Manifest.from_rows([{**row, "split": "train"}], folder).write("m.parquet")
    code, out, err = run(capsys, "manifest", "check", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_large_video_has_longer_to_be_checked(tmp_path, monkeypatch):
    row = {"num_frames": 3, "fps": 1.0, "duration_seconds": 3.0, "width": 2, "height": 2}
    paths = ["gone.mp4", "a.mp4", "https://host/s.tar#b.mp4@512+40000000"]
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(40_000_000)
    limits = []
    monkeypatch.setattr(
        journal, "run_isolated", lambda _, todo, limit, workers: limits.extend(map(limit, todo)) or iter(())
    )
    manifest = Manifest.from_rows([{**row, "path": path} for path in paths], tmp_path)
    chosen = check_module.frames_to_check(manifest, num_clips=2)
    with journal.VideoJournal(tmp_path / "m.parquet", [item.path for item in chosen], [0] * 3) as notes:
        check_module.find_failures(chosen, notes, time_limit_seconds=10)
    assert limits == [20, 24, 100]


@pytest.mark.parametrize("command", ["scan", "check"])
def test_help_explains(command, capsys):
    with pytest.raises(SystemExit) as left:
        main(["manifest", command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for word in ("workers", "time", "json"):
        assert word in text
