"""`timegrain floors gebd|vidsitu|kinetics|ava` from the shell."""

from __future__ import annotations

import json

import pytest

from timegrain.cli import main


@pytest.fixture
def rows(capsys):
    def call(*arguments):
        code = main(["floors", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        result = json.loads(out)
        assert {"benchmark", "protocol", "coverage", "rows"} == set(result)
        assert all("name" in row and "chosen_on" in row for row in result["rows"])
        return {row["name"]: row for row in result["rows"]}

    return call


def test_gebd(rows, shared, capsys):
    truth = shared / "golden" / "gebd" / "case1" / "gt.pkl"
    for missing in ("challenge", "notebook"):
        found = rows("gebd", "--ground-truth", truth, "--missing", missing)
        human = found.pop("human, leave one out")
        (uniform,) = found.values()
        assert 0 < uniform["f1"]["0.05"] < human["f1"]["0.05"] < 1
        assert uniform["chosen_on"] == "evaluated labels"
    stated = rows("gebd", "--ground-truth", truth, "--spacing", "0.25")["uniform, every 25 %"]
    assert stated["chosen_on"] == "stated"
    assert stated["f1"]["0.05"] <= uniform["f1"]["0.05"] + 0.05
    trained = rows("gebd", "--ground-truth", truth, "--train", truth)
    assert next(iter(trained.values()))["chosen_on"] == "training labels"
    assert main(["floors", "gebd", "--ground-truth", str(truth)]) == 0
    assert "human, leave one out" in capsys.readouterr().out
    assert main(["floors", "gebd", "--ground-truth", str(truth), "--spacing", "1.5"]) == 2
    both = ["--spacing", "0.2", "--train", str(truth)]
    assert main(["floors", "gebd", "--ground-truth", str(truth), *both]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "between 0 and 1" in err


def test_tapos_has_one_annotator(rows, shared):
    found = rows("gebd", "--ground-truth", shared / "data" / "annotations" / "gebd" / "tapos_gt_val.pkl")
    (uniform,) = found.values()
    assert uniform["counts"]["videos"] == 1755
    assert uniform["f1"]["0.05"] == pytest.approx(0.3384, abs=5e-5)
    assert uniform["spacing"] == 0.1


def test_vidsitu(rows, shared, tmp_path):
    folder = shared / "golden" / "vidsitu" / "case1"
    found = rows("vidsitu", "--ground-truth", folder, "--verbs", "look.01", "walk.01")
    assert found == rows("vidsitu", "--ground-truth", folder, "--verbs", '["look.01", "walk.01"]')
    assert found["constant, stated"]["verbs"] == ["look.01", "walk.01"]
    names = ["constant, stated", "constant speak.01", "constant greedy five", "oracle: one verb per video"]
    assert list(found) == [*names, "label shuffle inside a video", "human, leave one out"]
    for name in names:
        assert found[name]["matching"] == 0.2
    assert found["human, leave one out"]["matching"] > 0.5
    for part in ("split_files", "vinfo_files"):
        (tmp_path / part).mkdir()
        for file in (folder / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vseg_ann_files").mkdir()
    train = [{f"Ev{i}": {"VerbID": verb} for i, verb in enumerate(["talk.01", "talk.01", "a.01", "b.01", "c.01"], 1)}]
    (tmp_path / "vseg_ann_files" / "vsann_train_lb.json").write_text(json.dumps(train))
    found = rows("vidsitu", "--ground-truth", tmp_path)
    assert found["constant talk.01"]["chosen_on"] == "training labels"
    assert found["constant top five"]["verbs"] == ["talk.01", "a.01", "b.01", "c.01"]


def test_kinetics(rows, shared, tmp_path, capsys):
    labels = shared / "data" / "annotations" / "kinetics" / "kinetics-400_val.csv"
    row = rows("kinetics", "--ground-truth", labels)["majority class"]
    assert row["num_videos"] == 19906
    assert row["top1"] == pytest.approx(100 * 50 / 19906)
    assert row["mean_class_accuracy"] == 1 / 400
    bad = tmp_path / "bad.csv"
    bad.write_text("name,youtube_id\nx,y\n")
    assert main(["floors", "kinetics", "--ground-truth", str(bad)]) == 2
    assert "no column 'label'" in capsys.readouterr().err
    bad.write_text("label,youtube_id\nrun,y\n,z\n")
    assert main(["floors", "kinetics", "--ground-truth", str(bad)]) == 2
    assert "line 3: no label" in capsys.readouterr().err


def test_kinetics_from_a_manifest(rows, tmp_path, capsys):
    from timegrain.data.manifest import Manifest

    videos = [("train", "run"), ("train", "run"), ("train", "sit"), ("test", "sit"), ("test", "run"), ("test", "hop")]
    facts = {"num_frames": 10, "fps": 25.0, "duration_seconds": 0.4, "width": 8, "height": 8}
    listed = [{"path": f"{i}.mp4", "split": split, "label": label} | facts for i, (split, label) in enumerate(videos)]
    coverage = {"benchmark": "ucf101", "splits": {"test": {"listed": 4, "found": 3, "usable": 3}}, "missing_list": None}
    path = Manifest.from_rows(listed, tmp_path, coverage).write(tmp_path / "m.parquet")
    assert main(["floors", "kinetics", "--ground-truth", str(path), "--split", "test"]) == 0
    assert "ucf101: 3 of 4 test videos (75.00 %)" in capsys.readouterr().out
    row = rows("kinetics", "--ground-truth", path, "--split", "test")["majority class"]
    assert row["chosen_on"] == "training labels"
    assert row["classes"] == ["run", "sit"]
    assert row["top1"] == pytest.approx(100 / 3)


def test_ava(rows, shared):
    folder = shared / "golden" / "ava"
    arguments = ["ava", "--ground-truth", folder / "case9" / "gt.csv", "--label-map", folder / "label_map.pbtxt"]
    first = rows(*arguments, "--seed", "1")["class prior"]
    assert first == rows(*arguments, "--seed", "1")["class prior"]
    assert first["boxes"] == "true"
    given = rows(*arguments, "--boxes", folder / "case9" / "det.csv", "--train", folder / "case1" / "gt.csv")[
        "class prior"
    ]
    assert given["chosen_on"] == "training labels"
    assert given["map"] < first["map"]
