"""Shards from end to end: packed, listed, moved behind a URL, trained on, looked at; bit for bit as from local files."""

from __future__ import annotations

import csv
import gc
import json
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import make_video, moving_square
from shard_server import serve
from timegrain import files
from timegrain.cli import main
from timegrain.data import byte_ranges, packing
from timegrain.data.decoding import open_video
from timegrain.data.location import Location
from timegrain.data.manifest import Manifest

TINY = [
    "--model.backbone=r3d_tiny", "--model.head_hidden=16", "--model.head_layers=1", "--model.head_out=8",
    "--data.long_frames=16", "--data.long_stride=2", "--data.short_frames=8", "--data.short_stride=2",
    "--data.crop_size=16", "--data.batch_size=4", "--objective.num_long=2", "--run.tensorboard=false",
    "--run.log_every_steps=1", "--run.accelerator=cpu", "--run.monitor_every_epochs=0",
]  # fmt: skip


def run(*words: object) -> int:
    return main([str(word) for word in words])


def run_json(capsys, *words: object) -> dict:
    capsys.readouterr()
    code = run(*words, "--json")
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


@pytest.fixture(scope="module")
def place(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of local files, shards of them, and a manifest that points into the shards."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(video_folder, root / "videos")
    assert run("manifest", "scan", root / "videos", "--out", root / "files.parquet", "--workers=1") == 0
    packing_bytes = sum(file.stat().st_size for file in root.glob("videos/*/*.mp4"))
    assert packing_bytes > 50_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MEGABYTE", packing_bytes // 3)
        assert (
            run("manifest", "pack", root / "files.parquet", "--out", root / "packed.parquet", "--shard-megabytes=1")
            == 0
        )
    return root


@pytest.fixture
def web(place: Path, monkeypatch):
    monkeypatch.setattr(byte_ranges, "_PAUSES", (0.0, 0.0, 0.0, 0.0))
    with serve(place) as server:
        yield server


def moved(place: Path, url: str, out: Path) -> Path:
    """The manifest of the shards, as it is for readers behind a URL."""
    assert run("manifest", "move", place / "packed.parquet", "--to", f"{url}/packed_shards", "--out", out) == 0
    return out


def pretrain(out: Path, manifest: Path, *options: str) -> int:
    return run("pretrain", f"--run.out={out}", f"--data.manifest={manifest}", *TINY, *options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "weights.safetensors")


def assert_same(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def columns(path: Path, *without: str) -> list[dict]:
    """A manifest's rows without the columns that depend on where videos lie."""
    manifest = Manifest.open(path)
    names = [name for name in manifest.column_names if name not in ("path", "size_bytes", "modified_ns", *without)]
    return [
        dict(zip(names, row, strict=True)) for row in zip(*(manifest.column(n).to_pylist() for n in names), strict=True)
    ]


# ---- writing --------------------------------------------------------------------------------------------------------


def test_packed_videos_are_the_files_byte_for_byte(place):
    shards = sorted((place / "packed_shards").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"videos-{number:06d}.tar" for number in range(len(shards))]
    assert len(shards) >= 3
    files, packed = Manifest.open(place / "files.parquet"), Manifest.open(place / "packed.parquet")
    assert columns(place / "files.parquet") == columns(place / "packed.parquet")
    for file, row in zip(files, packed, strict=True):
        part = Location.parse(row.path)
        assert Path(part.source) in shards
        data = Path(part.source).read_bytes()[part.offset : part.offset + part.size]
        assert data == Path(file.path).read_bytes()
        assert part.member == Path(file.path).relative_to(place / "videos").as_posix()
    names = []
    for shard in shards:
        with tarfile.open(shard) as archive:
            names += archive.getnames()
    assert names[:4] == ["left/v1.mp4", "left/v1.json", "left/v3.mp4", "left/v3.json"]
    stored = Manifest.open(place / "packed.parquet")._all_rows["path"].to_pylist()
    assert stored[0].startswith("packed_shards/videos-000000.tar#left/v1.mp4@512+")


def test_a_manifest_from_shards_alone_is_the_one_they_were_packed_with(place, tmp_path, capsys, monkeypatch):
    def unread(*_: object) -> None:
        raise AssertionError("a video was read, which its JSON describes")

    with monkeypatch.context() as patch:
        patch.setattr("timegrain.data.shard_commands.probe_files", unread)
        report = run_json(capsys, "manifest", "shards", place / "packed_shards", "--out", tmp_path / "m.parquet")
    assert (report["videos"], report["usable"], report["labels"]) == (8, 8, {"left": 4, "right": 4})
    packed = Manifest.open(place / "packed.parquet")
    assert [row.path for row in Manifest.open(tmp_path / "m.parquet")] == [row.path for row in packed]
    assert columns(tmp_path / "m.parquet") == columns(place / "packed.parquet")
    assert (
        run(
            "manifest",
            "shards",
            f"{place}/packed_shards/*.tar",
            "--out",
            tmp_path / "n.parquet",
            "--probe",
            "--workers=1",
        )
        == 0
    )
    assert columns(tmp_path / "n.parquet") == columns(place / "packed.parquet")


def test_webdatasets_own_layout(place, tmp_path, capsys):
    """Shards as others write them: keys that are numbers, class files, JSON with other things, members of no interest."""
    video = (place / "videos/left/v1.mp4").read_bytes()
    texts = {
        "000000.mp4": video, "000000.cls": b"3\n", "000001.mp4": video,
        "000001.json": b'{"label": 7, "split": "val", "w": 1, "hash": 340282366920938463463374607431768211455}',
        "000002.mp4": b"no video", "000002.txt": b"a caption", "000003.json": b"{}", "d/000004.front.webm": video,
        "d/000004.json": b'{"label": "a", "w": "text", "sound": [1, 2]}', "000005.mp4": video, "000005.json": b"{no json",
    }  # fmt: skip
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard:03d}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
            for name, content in texts.items():
                (tmp_path / "member").write_bytes(content)
                archive.add(tmp_path / "member", name)
    (tmp_path / "s-002.tar").write_bytes((tmp_path / "s-001.tar").read_bytes()[:5000])
    out = tmp_path / "m.parquet"
    capsys.readouterr()
    assert (
        run("manifest", "shards", f"{tmp_path}/s-{{000..002}}.tar", "--split=train", "--workers=1", "--out", out) == 0
    )
    printed = capsys.readouterr()
    assert "left out, as a table cannot hold their values: w, hash" in printed.err
    rows = list(Manifest.open(out))
    assert len(rows) == 12
    assert [(row.label, row.split, row.num_frames) for row in rows[:5]] == [
        ("3", "train", 45), ("7", "val", 45), (None, "train", 0), ("a", "train", 45), (None, "train", 0),
    ]  # fmt: skip
    assert rows[3].extra["sound"] == [1, 2]
    errors = [row.error for row in rows]
    assert errors[:2] == [None, None]
    assert "not that of a video" in errors[2] or "not in a video format" in errors[2]
    assert "000005.json in the shard is no JSON" in errors[4]
    assert errors[10] == "the shard ends inside it"
    assert "the shard is damaged: it ends at byte 5,000, inside the member '000000.mp4'" in errors[11]
    assert "broken    6" in printed.out
    again = run_json(capsys, "manifest", "shards", tmp_path, "--split=train", "--workers=1", "--out", out)
    assert again["read_before"] == 6  # the good ones are not read again


def test_the_library_webdataset_reads_our_shards_and_we_read_those_it_writes(place, tmp_path):
    """The format's own implementation: samples with the same keys, bytes and JSON, in the same order."""
    webdataset = pytest.importorskip("webdataset")
    rows = list(Manifest.open(place / "packed.parquet"))
    shards = sorted(str(path) for path in (place / "packed_shards").glob("*.tar"))
    assert len(shards) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
        samples = list(webdataset.WebDataset(shards, shardshuffle=False))
        gc.collect()
    assert len(samples) == len(rows)
    for row, sample in zip(rows, samples, strict=True):
        location = Location.parse(row.path)
        assert location.member == f"{sample['__key__']}.mp4"
        with Path(location.source).open("rb") as file:
            file.seek(location.offset)
            assert file.read(location.size) == sample["mp4"]
        said = json.loads(sample["json"])
        assert (said["label"], said["timegrain"]["num_frames"]) == (row.label, row.num_frames)

    with webdataset.ShardWriter(f"file:{tmp_path}/w-%06d.tar", maxcount=2, verbose=0) as writer:
        for number, sample in enumerate(samples[:3]):
            writer.write({"__key__": f"{number:08d}", "mp4": sample["mp4"], "cls": number, "json": {"split": "val"}})
    assert run("manifest", "shards", tmp_path, "--out", tmp_path / "m.parquet", "--workers=1") == 0
    theirs = list(Manifest.open(tmp_path / "m.parquet"))
    assert [(row.label, row.split) for row in theirs] == [("0", "val"), ("1", "val"), ("2", "val")]
    for row, ours in zip(theirs, rows[:3], strict=True):
        with open_video(row.path) as one, open_video(ours.path) as other:
            assert torch.equal(one.frames(range(one.info.num_frames)), other.frames(range(other.info.num_frames)))


def test_packing_goes_on_where_it_was_killed(place, tmp_path, monkeypatch):
    write, made = packing._write, []

    def interrupted(shard, path):
        if len(made) == 2:
            # What a SIGKILL leaves, of a process that no machine has now
            path.with_name(f".{path.stem}.{2**22 + 1}@{files._NODE}.part.tar").write_bytes(b"half")
            raise KeyboardInterrupt
        made.append(path)
        return write(shard, path)

    monkeypatch.setattr(packing, "MEGABYTE", sum(file.stat().st_size for file in place.glob("videos/*/*.mp4")) // 3)
    words = ["manifest", "pack", place / "files.parquet", "--out", tmp_path / "packed.parquet", "--shard-megabytes=1"]
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write", interrupted)
        assert run(*words) == 130
    folder = tmp_path / "packed_shards"
    assert not (tmp_path / "packed.parquet").exists()
    assert sorted(path.name for path in folder.glob("v*.tar")) == ["videos-000000.tar", "videos-000001.tar"]
    first = (folder / "videos-000000.tar").stat().st_mtime_ns
    assert run(*words) == 0
    assert (folder / "videos-000000.tar").stat().st_mtime_ns == first
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (place / "packed_shards").iterdir())
    for name in names:
        if name.endswith(".tar"):
            assert (folder / name).read_bytes() == (place / "packed_shards" / name).read_bytes()
    assert columns(tmp_path / "packed.parquet") == columns(place / "packed.parquet")


def test_packing_again_writes_what_changed_and_forgets_what_is_gone(tmp_path, monkeypatch):
    for number in range(4):
        make_video(tmp_path / f"v/a.{number}.mp4", moving_square(30, seed=number))
    (tmp_path / "v/b.mp4").write_bytes(b"broken")
    assert run("manifest", "scan", tmp_path / "v", "--out", tmp_path / "m.parquet", "--workers=1") == 0
    monkeypatch.setattr(packing, "MEGABYTE", 1)  # a shard for each
    words = ["manifest", "pack", tmp_path / "m.parquet", "--out", tmp_path / "p.parquet"]
    assert run(*words) == 0
    folder = tmp_path / "p_shards"
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert len(stamps) == 4
    rows = list(Manifest.open(tmp_path / "p.parquet"))
    assert [Location.parse(row.path).member for row in rows[:4]] == [f"a_{number}.mp4" for number in range(4)]
    assert rows[4].path == str(tmp_path / "v/b.mp4")
    assert rows[4].error
    make_video(tmp_path / "v/a.1.mp4", moving_square(33, seed=9))
    (tmp_path / "v/a.3.mp4").unlink()
    assert run("manifest", "scan", tmp_path / "v", "--out", tmp_path / "m.parquet", "--workers=1") == 0
    assert run(*words) == 0
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert [name for name in after if after[name] != stamps[name]] == ["videos-000001.tar"]
    assert stamps.keys() - after.keys() == {"videos-000003.tar"}
    assert [row.num_frames for row in Manifest.open(tmp_path / "p.parquet").select()] == [30, 33, 30]


def test_shards_of_others_are_not_written_over(place, tmp_path, capsys):
    folder = tmp_path / "packed_shards"
    folder.mkdir()
    (folder / "videos-000000.tar").write_bytes(b"somebody else's")
    words = ["manifest", "pack", place / "files.parquet", "--out", tmp_path / "packed.parquet"]
    assert run(*words) == 2
    assert "videos-000000.tar is there already" in capsys.readouterr().err
    assert (folder / "videos-000000.tar").read_bytes() == b"somebody else's"
    assert run(*words, "--restart", "true") == 0


def test_a_kill_between_a_shard_and_its_note_does_no_harm(place, tmp_path, monkeypatch):
    words = ["manifest", "pack", place / "files.parquet", "--out", tmp_path / "packed.parquet"]
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write", lambda shard, path: path.write_bytes(b"whole") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*words)
    assert run(*words) == 0
    assert columns(tmp_path / "packed.parquet") == columns(place / "packed.parquet")


def test_prepare_writes_shards_by_split(tmp_path, capsys):
    video = make_video(tmp_path / "clip.mp4", moving_square(30, 96, 128))
    lines = []
    for number, split in enumerate(["train", "train", "val"]):
        name = f"{'abc'[number] * 11}_000001_000011"
        (tmp_path / "videos").mkdir(exist_ok=True)
        shutil.copy(video, tmp_path / "videos" / f"{name}.mp4")
        lines.append(f"bend,{name[:11]},1,11,{split}")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/all.csv").write_text(
        "\n".join(["label,youtube_id,time_start,time_end,split", *lines]) + "\n"
    )
    words = [
        "prepare",
        "kinetics400",
        tmp_path / "videos",
        "--annotations",
        tmp_path / "annotations",
        "--shards",
        "--workers=1",
    ]
    report = run_json(capsys, *words, "--out", tmp_path / "k.parquet")
    assert report["shards"]["shards"] == 2
    assert report["packed_from"] is None
    small = run_json(capsys, *words, "--out", tmp_path / "small.parquet", "--short-side", "48")
    shutil.rmtree(small["packed_from"])  # as its report says
    for name, answer, height in (("k", report, 96), ("small", small, 48)):
        manifest = Manifest.open(tmp_path / f"{name}.parquet")
        assert manifest.coverage["benchmark"] == "kinetics400"
        assert answer["splits"]["train"]["usable"] == 2
        assert sorted(path.name for path in (tmp_path / f"{name}_shards").glob("*.tar")) == [
            "train-000000.tar", "val-000000.tar",
        ]  # fmt: skip
        for row in manifest:
            assert Path(Location.parse(row.path).source).name == f"{row.split}-000000.tar"
            assert (row.label, row.height) == ("bend", height)
            with open_video(row.path) as reader:
                assert (reader.num_frames, reader.info.height) == (30, height)
    assert run("manifest", "shards", tmp_path / "k_shards", "--out", tmp_path / "again.parquet") == 0
    assert columns(tmp_path / "again.parquet") == columns(tmp_path / "k.parquet")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["manifest", "shards", "nothing.tar", "--out", "o.parquet"], "nothing.tar: there is no tar file"),
        (["manifest", "shards", "{t,u}.tar", "--out", "o.parquet"], "u.tar: there is no tar file"),
        (["manifest", "shards", "https://u:hunter2@127.0.0.1:9/a.tar?hunter2", "--out", "o.parquet"], "no connection"),
        (["manifest", "shards", "unknown://h/a.tar", "--out", "o.parquet"], "unknown:// cannot be read"),
        (["manifest", "shards", "t.tar", "--out", "o.parquet"], "no member of 1 shards has the ending of a video"),
        (["manifest", "scan", "tars", "--out", "o.parquet"], "It has t.tar: `timegrain manifest shards "),
        (["manifest", "pack", "packed.parquet", "--out", "packed.parquet"], "is the manifest itself"),
        (["manifest", "pack", "packed.parquet", "--out", "o.parquet", "--shard-megabytes=0"], "at least 1 MB"),
        (["manifest", "pack", "a.parquet", "--out=packed.parquet", "--shard-megabytes=2"], "choose another --out"),
        (["manifest", "move", "packed.parquet", "--to", "elsewhere", "--out", "o.parquet"], "file not found"),
        (["manifest", "move", "packed.parquet", "--of=other", "--to=x", "--out=o.parquet"], "choose another --of"),
        (["manifest", "move", "packed.parquet", "--of=s3://b", "--to=x", "--out=o.parquet"], "is not in s3://b;"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_message(place, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setattr(byte_ranges, "_PAUSES", ())
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "packed_shards", tmp_path / "packed_shards")
    shutil.copy(place / "packed.parquet", tmp_path)
    shutil.copy(place / "packed.parquet", "a.parquet")
    (tmp_path / "tars").mkdir()
    with tarfile.open("t.tar", "w") as archive:
        archive.add(place / "files.parquet", "files.parquet")
    shutil.copy("t.tar", "tars")
    before = sorted(tmp_path.rglob("*"))
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert "hunter2" not in printed.err
    assert sorted(tmp_path.rglob("*")) == before


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_run(place, tmp_path_factory) -> Path:
    """A run on local files, for the others to equal."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert pretrain(out, place / "files.parquet", "--run.steps=5", "--data.workers=0") == 0
    return out


def test_a_run_over_broken_connections_is_the_run_on_local_files(place, plain_run, web, tmp_path):
    manifest = moved(place, web.url, tmp_path / "m.parquet")
    web.asked.clear()
    web.answers.extend([-700, 503, None, -1, None, None, 500, -3000, None, 429] * 2)
    assert pretrain(tmp_path / "run", manifest, "--run.steps=5", "--data.workers=0") == 0
    assert_same(plain_run, tmp_path / "run")
    assert not web.answers
    assert not (tmp_path / "run/failed_videos.csv").exists()
    videos = 5 * 4
    broke = 2 * 4  # connections that gave some bytes, or none, and then broke; the rest of the bytes is asked for again
    assert videos <= len(web.asked) <= videos + broke
    whole = {Location.parse(row.path).size + 512 for row in Manifest.open(manifest)}
    assert max(end - start + 1 for _, start, end in web.asked) <= max(whole)  # never more than a video


@pytest.mark.multiprocess
def test_resume_over_shards_is_bit_for_bit(place, plain_run, web, tmp_path):
    """Stopped on shards behind a URL, with workers; gone on with from local shards."""
    out, manifest = tmp_path / "run", moved(place, web.url, tmp_path / "m.parquet")
    code = (
        "import sys, timegrain.callbacks as c\n"
        "def stop(self, trainer, *rest):\n    if trainer.global_step == 3:\n        import os; os._exit(9)\n"
        "c.FailedVideos.on_train_batch_start = stop\n"
        "from timegrain.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["pretrain", f"--run.out={out}", f"--data.manifest={manifest}", *TINY, "--run.steps=5", "--data.workers=1"]
    stopped = subprocess.run([sys.executable, "-c", code, *words, "--run.checkpoint_every_steps=1"], check=False)
    assert stopped.returncode == 9
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    shutil.copytree(place / "packed_shards", tmp_path / "packed_shards")
    Manifest.open(place / "packed.parquet")
    assert run("manifest", "move", manifest, "--to", tmp_path / "packed_shards", "--out", tmp_path / "n.parquet") == 0
    os.replace(tmp_path / "n.parquet", manifest)
    assert main([*words, "--run.checkpoint_every_steps=1"]) == 0
    assert_same(plain_run, out)


def test_broken_videos_in_shards_are_listed_and_stop_the_run_when_they_are_many(place, web, tmp_path, capsys):
    manifest = moved(place, web.url, tmp_path / "m.parquet")
    last = sorted(Location.parse(row.path).source for row in Manifest.open(manifest))[-1]
    web.every[Path(last).name] = 403
    lost = [row.path for row in Manifest.open(manifest) if row.path.startswith(last)]
    assert 0 < len(lost) < 8
    common = ["--run.steps=4", "--data.workers=0"]
    assert pretrain(tmp_path / "run", manifest, *common, "--data.max_failure_share=0.9") == 0
    with (tmp_path / "run/failed_videos.csv").open(newline="") as file:
        listed = {path: reason for path, reason, _ in csv.reader(file)}
    assert listed.keys() == set(lost)
    assert all("access denied (the server answered 403)" in reason for reason in listed.values())
    capsys.readouterr()
    assert pretrain(tmp_path / "strict", manifest, *common, "--data.max_failure_share=0.1") == 2
    message = capsys.readouterr().err
    assert "403" in message
    assert "--data.max_failure_share" in message
    assert "Traceback" not in message
    checked = run_json(capsys, "manifest", "check", manifest, "--out", tmp_path / "checked.parquet", "--workers=1")
    assert checked["newly_broken"] == len(lost)
    assert sum(row.error is not None for row in Manifest.open(tmp_path / "checked.parquet")) == len(lost)


@pytest.mark.multiprocess
def test_a_server_that_is_gone_ends_the_run_with_one_message(place, web, tmp_path, capsys):
    manifest = moved(place, web.url, tmp_path / "m.parquet")
    web.every["tar"] = 503
    assert pretrain(tmp_path / "run", manifest, "--run.steps=4", "--data.workers=1") == 2
    message = capsys.readouterr().err
    assert "the server answered 503 (the last of 5 tries" in message
    assert "5 videos in a row could not be decoded" in message
    assert "Traceback" not in message
    assert "ended from outside" not in message


# ---- everything else that reads videos -------------------------------------------------------------------------------


def test_embed_probe_boundaries_and_check_read_shards(place, plain_run, web, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    import pandas

    manifest = moved(place, web.url, tmp_path / "m.parquet")
    features = {}
    for name, source in {
        "files": place / "files.parquet",
        "tars": place / "packed_shards/videos-000000.tar",
        "web": manifest,
    }.items():
        assert run("embed", source, "--weights", plain_run, "--out", f"{name}.parquet") == 0
        table = pandas.read_parquet(f"{name}.parquet")
        features[name] = np.stack(table.features)
        assert "already" not in capsys.readouterr().out
        assert run("embed", source, "--weights", plain_run, "--out", f"{name}.parquet") == 0
        assert "were there already" in capsys.readouterr().out
    assert (features["files"] == features["web"]).all()
    assert (features["files"][: len(features["tars"])] == features["tars"]).all()
    one = Manifest.open(manifest)[0].path
    signed = one.replace(".tar#", ".tar?signature=hunter2#")
    assert run("embed", signed, f"{web.url}/videos/left/v3.mp4", "--weights", plain_run, "--out", "one.parquet") == 0
    assert b"hunter2" not in Path("one.parquet").read_bytes()
    assert "?***#left/v1.mp4@" in pandas.read_parquet("one.parquet").path[0]
    capsys.readouterr()
    assert run("embed", signed.replace("hunter2", "3"), "--weights", plain_run, "--out", "one.parquet") == 0
    assert "already" not in capsys.readouterr().out  # another query is another file
    assert run("boundaries", "find", manifest, "--weights", plain_run, "--out", "b.csv") == 0
    assert run("boundaries", "find", place / "files.parquet", "--weights", plain_run, "--out", "c.csv") == 0
    found, plain = pandas.read_csv("b.csv"), pandas.read_csv("c.csv")
    assert (found[["seconds", "strength"]].to_numpy() == plain[["seconds", "strength"]].to_numpy()).all()
    scores = {}
    for name in (manifest, place / "files.parquet"):
        words = ["probe", "--weights", plain_run, "--manifest", name, "--hold-out=0.5", "--num-neighbours=2"]
        answer = run_json(capsys, *words, "--out", tmp_path / f"probe-{Path(name).stem}")
        scores[Path(name).stem] = json.dumps(answer.get("rows", answer.get("scores", "")))
    assert len(set(scores.values())) == 1
    assert run("manifest", "check", manifest, "--workers=1") == 0
    out = capsys.readouterr().out
    assert "100.00%" in out


def test_frames_kept_on_disk_come_from_shards(place, plain_run, tmp_path):
    out = tmp_path / "run"
    assert pretrain(out, place / "packed.parquet", "--run.steps=5", "--data.workers=0", "--data.cache=true") == 0
    assert_same(plain_run, out)
