"""`timegrain floors scenedetect|change`: from videos to a file that `timegrain score gebd` reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conftest import make_video, moving_square
from timegrain.cli import main
from timegrain.data import journal
from timegrain.data.isolated import Failure
from timegrain.data.manifest import Manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("cuts")
    for index, lengths in enumerate([(40, 40), (60, 30)]):
        parts = [moving_square(n, 64, 96, seed=index + 5 * i) for i, n in enumerate(lengths)]
        name = ["aaaaaaaaaaa_000010_000020", "bbbbbbbbbbb"][index]
        make_video(root / f"{name}.mp4", np.concatenate(parts), fps=25.0, options={"crf": "10"})
    (root / "broken.mp4").write_bytes(b"not a video")
    return root


def run(capsys, *arguments):
    code = main(["floors", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_scenedetect_from_folder_to_score(folder, tmp_path, capsys):
    out = tmp_path / "cuts.json"
    code, text, err = run(capsys, "scenedetect", folder, "--out", out, "--json", "--workers", 1)
    assert code == 0, err
    result = json.loads(text)
    assert (result["videos"], result["failed"], result["boundaries"]) == (2, 1, 2)
    assert list(result["failures"]) == ["broken"]
    assert "broken.mp4" in err
    found = json.loads(out.read_text())
    assert found == {"aaaaaaaaaaa": [pytest.approx(1.6)], "bbbbbbbbbbb": [pytest.approx(2.4)]}
    truth = {
        key: {"video_duration": 3.2, "num_frames": 80, "f1_consis_avg": 0.9, "substages_timestamps": [times]}
        for key, times in found.items()
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    arguments = ["--ground-truth", str(tmp_path / "gt.json"), "--predictions", str(out), "--missing", "challenge"]
    assert main(["score", "gebd", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["f1"]["0.05"] == 1.0


def test_change_in_frames_from_a_manifest(folder, tmp_path, capsys):
    rows = [
        {"path": str(folder / f"{name}.mp4"), "split": "val", "video_id": video_id}
        | {"num_frames": 80, "fps": 25.0, "duration_seconds": 3.2, "width": 96, "height": 64}
        for name, video_id in (("aaaaaaaaaaa_000010_000020", "first"), ("bbbbbbbbbbb", None))
    ]
    coverage = {"benchmark": "gebd", "splits": {"val": {"listed": 3, "found": 2, "usable": 2}}, "missing_list": None}
    manifest = Manifest.from_rows(rows, tmp_path, coverage).write(tmp_path / "m.parquet")
    out = tmp_path / "changes.pkl"
    options = ["--split", "val", "--unit", "frames", "--method", "pixels", "--prominence", "1.5", "--workers", "1"]
    code, text, err = run(capsys, "change", manifest, "--out", out, *options)
    assert code == 0, err
    assert "2 videos" in text
    assert "gebd: 2 of 3 validation videos (66.66 %)" in text
    from timegrain.metrics.inputs import read_boundaries

    found = read_boundaries(out)
    assert found == {"first": (pytest.approx(40, abs=3),), "bbbbbbbbbbb": (pytest.approx(60, abs=3),)}


def test_refusals_leave_no_file(folder, tmp_path, capsys):
    twice = tmp_path / "twice"
    for part in ("x", "y"):
        make_video(twice / part / "same.mp4", moving_square(5))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.mp4").write_bytes(b"not a video")
    (tmp_path / "empty").mkdir()
    for videos, options, message in (
        (folder, ["--out", tmp_path / "p.txt"], "written as .json or .pkl"),
        (folder, ["--out", tmp_path / "p.json", "--split", "val"], "only a manifest has splits"),
        (folder, ["--out", tmp_path / "p.json", "--workers", "0"], "at least one process"),
        (twice, ["--out", tmp_path / "p.json"], "two videos have the id 'same'"),
        (tmp_path / "empty", ["--out", tmp_path / "p.json"], "no video in it"),
        (broken, ["--out", tmp_path / "p.json", "--workers", "1"], "none of the 1 videos could be read"),
    ):
        code, text, err = run(capsys, "scenedetect", videos, *options)
        assert (code, text) == (2, "")
        assert message in err
    code, _, err = run(capsys, "change", folder, "--out", tmp_path / "p.json", "--rate", "-1")
    assert code == 2
    assert "must be positive" in err
    assert not list(tmp_path.glob("*p.*"))


def test_a_url_s_secret_is_not_printed_with_its_failure(tmp_path, capsys, monkeypatch):
    url = "https://someone:secret@host/a.mp4?token=secret"
    Manifest.from_rows([{"path": url, "num_frames": 9, "fps": 9.0, "width": 9, "height": 9}], tmp_path).write(
        tmp_path / "m.parquet"
    )
    broken = iter([(0, Failure("could not be read"))])
    monkeypatch.setattr(journal, "run_isolated", lambda *_: broken)
    code, _, error = run(capsys, "change", tmp_path / "m.parquet", "--out", tmp_path / "c.json")
    assert code == 2
    assert "https://***@host/a.mp4?***: could not be read" in error
    assert "secret" not in error
