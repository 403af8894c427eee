"""The report: what shares a table, ours beside published, what is read from the numbers."""

import json

from timegrain.report.results import Result, Row, write_result
from timegrain.report.results_page import group_results, reading, report


def a_result(seed, score, method="TeG-FG", views=30, benchmark="kinetics400"):
    rows = [
        Row(method, {"top1": score}, seed=seed),
        Row("random weights", {"top1": 0.10}, "floor", seed),
        Row("majority", {"top1": 0.05}, "floor"),
        Row("supervised", {"top1": 0.9}, "ceiling", 0),
    ]
    return Result(
        benchmark,
        "linear probe",
        {"top1": "top-1"},
        rows,
        {"views": views},
        {"benchmark": benchmark, "splits": {"val": {"listed": 8, "found": 4, "usable": 4}}},
        12,
        seconds=1.0,
    )


def test_only_equal_protocols_share_a_table(tmp_path):
    results = [(tmp_path, a_result(0, 0.5)), (tmp_path, a_result(1, 0.6)), (tmp_path, a_result(2, 0.6, views=3))]
    groups = group_results(results)
    assert [len(group.results) for group in groups] == [2, 1]
    assert [group.title for group in groups] == [
        "kinetics400: linear probe (views 30)", "kinetics400: linear probe (views 3)"
    ]  # fmt: skip
    assert group_results(results[:2])[0].title == "kinetics400: linear probe"


def test_settings_inside_a_setting_tell_tables_apart(tmp_path):
    results = [(tmp_path, a_result(0, 0.5, views={"num_clips": number, "num_crops": 3})) for number in (1, 10)]
    assert [group.title for group in group_results(results)] == [
        "kinetics400: linear probe (views.num_clips 1)", "kinetics400: linear probe (views.num_clips 10)"
    ]  # fmt: skip


def test_floors_measured_again_count_once_and_seeds_count_each(tmp_path):
    (group,) = group_results([(tmp_path, a_result(seed, 0.5 + seed / 100)) for seed in range(3)])
    assert len(group.methods("trained")["TeG-FG"]) == 3
    assert len(group.methods("floor")["random weights"]) == 3
    assert len(group.methods("floor")["majority"]) == 1
    assert len(group.methods("ceiling")["supervised"]) == 1


def test_rows_of_one_result_are_never_taken_for_each_other(tmp_path):
    """Weights without a config.yaml beside them have no seed, and small test sets give equal scores."""
    rows = [Row("TeG-FG", {"top1": score}) for score in (0.5, 0.6, 0.6)]
    (group,) = group_results([(tmp_path, Result("ucf101", "linear probe", {"top1": "top-1"}, rows))] * 2)
    assert [row.scores["top1"] for row in group.methods("trained")["TeG-FG"]] == [0.5, 0.6, 0.6]


def test_the_reading_is_computed_from_the_numbers(tmp_path):
    better = [(tmp_path, a_result(seed, 0.5 + seed / 100)) for seed in range(3)]
    worse = [(tmp_path, a_result(seed, 0.05 + seed / 1000)) for seed in range(3)]
    (good,), (bad,), (one,) = group_results(better), group_results(worse), group_results(better[:1])
    assert "TeG-FG is 0.410 above the best floor (random weights), more than twice" in reading(good)[0]
    assert "below the best floor" in reading(bad)[0]
    assert any("Fewer than three seeds" in said for said in reading(one))


def test_page_and_table_hold_ours_published_floors_and_ceiling(tmp_path, capsys):
    for seed in range(3):
        write_result(tmp_path / "runs" / str(seed), a_result(seed, 0.6 + seed / 100))
    report([tmp_path / "runs"], out=tmp_path / "out", json=True)
    record = json.loads(capsys.readouterr().out)
    page, markdown = (tmp_path / "out" / "report.html").read_text(), (tmp_path / "out" / "report.md").read_text()
    assert record["tables"][0]["methods"]["TeG-FG"]["scores"]["top1"] == [0.6, 0.61, 0.62]
    assert "| TeG-FG | 0.610 ± 0.010 | 0.650 |" in markdown
    assert "| CVRL |  | 0.661 |" in markdown  # published, not measured here
    assert markdown.index("**floors**") < markdown.index("| random weights") < markdown.index("**ceiling**")
    assert "kinetics400: 4 of 8 validation videos (50.00 %)" in markdown
    assert "12 test items" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_boundary_detector_stands_beside_its_published_row(tmp_path):
    """By the names that `timegrain boundaries` writes."""
    rows = [Row("window, fine-tuned, TeG-FG", {"f1@0.05": 0.5}, seed=0), Row("SceneDet", {"f1@0.05": 0.3}, "floor")]
    write_result(tmp_path / "run", Result("gebd", "boundaries", {"f1@0.05": "F1@0.05"}, rows))
    report([tmp_path / "run"], out=tmp_path / "out")
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| window, fine-tuned, TeG-FG | 0.500 | 0.714 |" in markdown
    assert "| SceneDet | 0.300 | 0.275 |" in markdown
    assert "| PC |  | 0.625 |" in markdown
