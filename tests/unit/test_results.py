"""result.json: what is written is read back; what is no result is refused by name."""

import json

import pytest

from timegrain import provenance
from timegrain.report.results import Result, Row, find_results, method_name, read_result, write_result


def a_result(seed: int = 0, score: float = 0.5) -> Result:
    rows = [Row("TeG-FG", {"top1": score}, seed=seed), Row("majority", {"top1": 0.25}, "floor")]
    return Result("ucf101", "linear probe", {"top1": "top-1"}, rows, {"views": 3}, {"present": 4}, 12)


def test_round_trip_with_provenance(tmp_path):
    path = write_result(tmp_path, a_result())
    back = read_result(path)
    assert back.rows == a_result().rows
    assert (back.benchmark, back.protocol, back.coverage, back.num_test) == ("ucf101", {"views": 3}, {"present": 4}, 12)
    assert back.provenance["versions"]["torch"]
    assert back.provenance["machine"]["cores"] >= 1


def test_what_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "_PACKAGES", ("torch", "no-such-package"))
    versions = provenance.provenance()["versions"]
    assert versions["torch"]
    assert versions["no-such-package"] is None


def test_what_was_typed_is_noted_without_secrets(monkeypatch):
    monkeypatch.setattr("sys.argv", ["timegrain", "probe", "--manifest=https://me:secret@host/a.parquet?sig=secret"])
    assert provenance.provenance()["command"] == ["timegrain", "probe", "--manifest=https://***@host/a.parquet?***"]


def test_results_are_found_in_folders_once(tmp_path):
    write_result(tmp_path / "a", a_result(0))
    write_result(tmp_path / "b" / "deep", a_result(1))
    found = find_results([tmp_path, tmp_path / "a" / "result.json"])
    assert [result.rows[0].seed for _, result in found] == [0, 1]


GOOD = {
    "form": "timegrain-result/1", "benchmark": "b", "task": "t", "metrics": {"x": "X"},
    "rows": [{"method": "a", "scores": {"x": 1}}],
}  # fmt: skip


def test_a_result_that_an_editor_saved_again_is_read(tmp_path):
    (tmp_path / "result.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD, indent=1).replace("\n", "\r\n").encode())
    assert read_result(tmp_path / "result.json").benchmark == "b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "does not say"),
        ('{"form": "timegrain-result/1"}', "rows"),
        (json.dumps({"form": "timegrain-result/1", "rows": [{"method": "a", "scores": {"x": "high"}}]}), "missing"),
        (json.dumps(GOOD | {"benchmark": []}), r"benchmark is \[\]"),
        (json.dumps(GOOD | {"metrics": {}}), "no metric"),
        (json.dumps(GOOD | {"metrics": "top1"}), "dictionary|metrics is 'top1'"),
        (json.dumps(GOOD | {"metrics": {"x": None}}), "name of a metric is None"),
        (json.dumps(GOOD | {"rows": []}), "no row"),
        (json.dumps(GOOD | {"rows": [{"method": None, "scores": {"x": 1}}]}), "method of a row is None"),
        (json.dumps(GOOD | {"rows": [{"method": "a", "scores": {"x": 1}, "role": "best"}]}), "a row is 'best'"),
        (json.dumps(GOOD | {"rows": [{"method": "a", "scores": {"x": 1}, "seed": [1]}]}), "seed of a row"),
        (json.dumps(GOOD | {"protocol": 3}), "protocol is 3"),
        (json.dumps(GOOD | {"coverage": {"splits": {"val": {"listed": 0, "usable": 0, "found": 0}}}}), "zero"),
    ],
)
def test_a_file_that_is_no_result_is_named(tmp_path, text, reason):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json is not a result of TimeGrain.*" + reason):
        find_results([tmp_path])


def test_missing_and_empty_runs_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_results([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="holds no result"):
        find_results([tmp_path])


@pytest.mark.parametrize(
    ("trained", "name"),
    [
        ({"objective": "TeG", "alpha": 0}, "TeG-PS"),
        ({"objective": "TeG", "alpha": 0.9}, "TeG-FG"),
        ({"objective": "TeG", "alpha": 0.5}, "TeG (α = 0.5)"),
        ({"objective": "TeG", "alpha": None, "levels": [{"num_short": 2, "num_long": 4}]}, "TeG levels 2x4"),
        ({"objective": "CVRL"}, "CVRL"),
        ({}, "weights"),
    ],
)
def test_methods_are_named_by_their_training(trained, name):
    assert method_name(trained) == name
