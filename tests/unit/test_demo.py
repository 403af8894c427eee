"""The demo: what it reads off its numbers, what it draws, and that a job done is a job kept."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from timegrain.data.eventworld import write_world
from timegrain.demo import METHODS, demo, jobs, reading
from timegrain.demo.figures import paired_differences, score_panels, similarity_panels, video_strips
from timegrain.demo.jobs import Done, Example, Job, run_job
from timegrain.demo.page import by_score, write_page
from timegrain.demo.reading import FINE, MIDDLE, PERSISTENT, PIXELS, PYRAMID, RANDOM, SCORES, Difference

LEVEL = {PERSISTENT: 0.4, MIDDLE: 0.45, FINE: 0.4, PYRAMID: 0.42, RANDOM: 0.3, PIXELS: 0.2}


def results(inside: list[float], whole: list[float], **changes: list[float]) -> dict[str, dict[str, list[float]]]:
    """Scores of all methods in as many worlds as there are gaps of FG over PS, inside and about the whole."""
    found = {}
    for score in SCORES:
        gaps = inside if score.inside else whole
        found[score.key] = {name: [LEVEL.get(name, 0.8)] * len(gaps) for name, _, _ in METHODS}
        found[score.key][FINE] = [LEVEL[PERSISTENT] + gap for gap in gaps]
        found[score.key] |= {name: values for name, values in changes.items() if name in found[score.key]}
    return found


def test_a_difference_is_clear_if_all_worlds_agree_and_it_is_larger_than_its_spread():
    assert Difference((0.10, 0.12, 0.08)).clear
    assert Difference((-0.10, -0.12, -0.08)).clear
    assert not Difference((0.10, 0.12, -0.01)).clear
    assert not Difference((0.01, 0.30, 0.02)).clear  # the spread is larger than the mean
    assert not Difference((0.10,)).clear
    assert not Difference((0.0, 0.0)).clear
    assert str(Difference((-0.10, -0.12, 0.01))) == "−0.070 ± 0.070, 2 of 3 worlds"


@pytest.mark.parametrize(
    ("inside", "whole", "says"),
    [
        ([0.1, 0.12, 0.11], [-0.05, -0.06, -0.05], "That is the paper's finding."),
        ([0.1, 0.12, 0.11], [-0.05, 0.06, 0.01], "The first half of the paper's finding is there"),
        ([0.1, -0.12, 0.11], [-0.05, -0.06, -0.05], "The second half"),
        ([0.1, -0.12, 0.11], [0.05, -0.06, 0.01], "settles nothing"),
        ([-0.1, -0.12, -0.11], [-0.05, -0.06, -0.05], "disagrees with the paper"),
        ([0.1, 0.12, 0.11], [0.05, 0.06, 0.05], "disagrees with the paper"),
        ([0.1], [-0.1], "One world only"),
    ],
)
def test_the_summary_says_what_the_numbers_say(inside, whole, says):
    assert says in reading.summary(results(inside, whole))


def test_sentences_name_the_winner_the_doubt_and_the_floors():
    agreeing = dict(zip([s.key for s in SCORES], reading.comparisons(results([0.1] * 3, [-0.05] * 3)), strict=True))
    assert "FG minus PS +0.100 ± 0.000, 3 of 3 worlds. As the paper finds." in agreeing["event"]
    assert "above random weights (+0.200)" in agreeing["event"]
    assert "pixels" not in agreeing["event"]
    against = reading.comparisons(results([-0.1] * 3, [0.05] * 3))
    assert all("Against what the paper finds." in sentence for sentence in against)
    unsettled = reading.comparisons(results([0.1, -0.1, 0.0], [0.0, 0.01, -0.01]))
    assert all("Not settled" in sentence for sentence in unsettled)
    nothing = results([0.0] * 2, [0.0] * 2)
    for methods in nothing.values():
        methods[RANDOM], methods[PIXELS] = [0.5, 0.5], [0.6, 0.6]
        methods[reading.INSIDE_CEILING] = methods[reading.VIDEO_CEILING] = [0.3, 0.3]
    for sentence in reading.comparisons(nothing):
        assert "not above random weights (−0.100)" in sentence
        assert "not above raw pixels (0.600)" in sentence
        assert "no ceiling" in sentence


def test_sentences_about_even_cuts_and_the_pyramid():
    scores = results([0.1] * 2, [-0.1] * 2)
    assert f"{FINE}, 0.500) stays below that" in reading.cuts_sentence(scores, [0.6, 0.6])
    assert "beats that" in reading.cuts_sentence(scores, [0.3, 0.3])
    assert "event class −0.080" in reading.pyramid_sentence(scores)  # 0.42 against FG's 0.5
    assert "video class, kNN +0.020" in reading.pyramid_sentence(scores)  # against PS's 0.4
    for methods in scores.values():
        del methods[PYRAMID]
    assert reading.pyramid_sentence(scores) == ""


def pixels(png: bytes) -> np.ndarray:
    return plt.imread(io.BytesIO(png))


def test_pictures_are_narrow_and_leave_nothing_open():
    frames = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), dtype=np.uint8)
    scores = results([0.1, 0.2], [-0.1, 0.0])
    pictures = [
        paired_differences(scores),
        score_panels(scores, {"event": [0.1, 0.1]}, ["event", "clip"]),
        video_strips([(frames, [(0.0, 1.0, "slim-rising"), (1.0, 2.0, "stout-vertical")], 2.0, "checks-fine")]),
        similarity_panels(frames, {name: frames.reshape(20, -1).astype(float) for name in "abcd"}, [0.5], 2.0),
    ]
    for png in pictures:
        assert 400 < pixels(png).shape[1] < 800
    assert not plt.get_fignums()


def test_points_of_the_differences_lie_on_the_side_of_the_winner():
    def sides(png: bytes) -> tuple[float, float]:
        picture = pixels(png)[..., :3]
        blue = (np.abs(picture - np.array([0x44, 0x77, 0xAA]) / 255) < 0.02).all(-1)
        orange = (np.abs(picture - np.array([0xEE, 0x77, 0x33]) / 255) < 0.02).all(-1)
        return float(np.nonzero(orange)[1].mean()), float(np.nonzero(blue)[1].mean())

    inside, whole = sides(paired_differences(results([0.1] * 3, [-0.1] * 3)))
    assert inside > whole + 200
    inside, whole = sides(paired_differences(results([-0.1] * 3, [0.1] * 3)))
    assert inside < whole - 200


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "seed1000"
    write_world(folder, 24, 1000, "train", num_test_videos=8, workers=1, preview=False)
    return folder


def test_a_job_done_is_kept_and_another_one_is_not_taken_for_it(world: Path, tmp_path: Path):
    job = Job(RANDOM, "random", world, tmp_path / "job", 1000)
    done = run_job(job)
    assert set(done.scores) == {score.key for score in SCORES}
    assert len(done.examples) == jobs.NUM_EXAMPLES
    again = Done.load(job)
    assert again is not None
    assert again.scores == done.scores
    for one, other in zip(done.examples, again.examples, strict=True):
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.detections_seconds, other.detections_seconds)
    assert Done.load(replace(job, steps=5)) is None
    assert Done.load(replace(job, out=tmp_path / "elsewhere")) is None


@pytest.mark.parametrize("worlds", [1, 3])
def test_the_page_stands_alone_and_says_what_the_numbers_say(world: Path, tmp_path: Path, worlds: int):
    rng = np.random.default_rng(0)
    example = Example(rng.normal(size=(30, 5)), np.arange(30) * 0.16, rng.random(30), np.array([1.0, 2.0]))
    scores = results([0.1] * worlds, [-0.05] * worlds)
    done = []
    for name, kind, alpha in METHODS:
        out = tmp_path / f"{kind}{alpha}"
        out.mkdir()
        losses = "step,fine/loss,fine/chance_loss\n10,3.0,4.8\n20,2.0,4.8\n"
        (out / "metrics.csv").write_text(losses)
        for seed in range(worlds):
            values = {score.key: scores[score.key][name][seed] for score in SCORES}
            times = {"training": 1.0, "features and probes": 2.0}
            done.append(Done(Job(name, kind, world, out, seed, 20, alpha), values, times, [example] * 6))
    assert by_score(done) == scores
    floor = {"majority": {"event": 0.1, "clip": 0.2, "video": 0.2, "knn": 0.2}}
    fixed = {seed: {**floor, "uniform": {"boundary_f1": 0.6, "boundary_auc": 0.5}} for seed in range(worlds)}
    facts = {"train": 24, "test": 8, "worlds": worlds, "steps": 20, "pyramid": True, "quick": worlds == 1}
    folders = dict.fromkeys(range(worlds), world)
    page = write_page(tmp_path / "report.html", facts, done, fixed, folders, {"in all": 3.0}).read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert ("quick version" in page) == (worlds == 1)
    assert ("That is the paper&#39;s finding." in page) == (worlds == 3)
    for name, _, _ in METHODS:
        assert f">{name}<" in page


def test_a_seed_that_training_refuses_is_refused_before_videos_are_made(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("timegrain.demo.write_world", None)
    with pytest.raises(ValueError, match="--seed must be at least 0, got -1"):
        demo(out=tmp_path, seed=-1)


def test_the_quick_demo_and_the_whole_one_share_a_folder(tmp_path: Path, monkeypatch):
    """Their worlds have other sizes, so neither can take the other's."""
    made: list[Path] = []

    def write(folder: Path, *rest: object, **settings: object) -> None:
        made.append(folder)
        raise ValueError("enough")

    monkeypatch.setattr("timegrain.demo.write_world", write)
    for quick in (True, False):
        with pytest.raises(ValueError, match="enough"):
            demo(out=tmp_path, quick=quick)
    assert made[0] != made[1]
