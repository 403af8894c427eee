"""The study that configs/tiny ships: every evaluation of the paper on EventWorld, two steps each."""

from __future__ import annotations

from pathlib import Path

import pytest

from timegrain.cli import main
from timegrain.data.eventworld import world_config, write_world
from timegrain.report.results import NAME, find_results
from timegrain.tasks.sweep import Job, load_sweep, plan_jobs

STUDY = Path(__file__).parents[2] / "configs" / "tiny" / "eventworld_study.yaml"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    place = tmp_path_factory.mktemp("study")
    worlds = {
        "many": (24, world_config(num_frames=48, max_events=4)),
        "five": (12, world_config(num_frames=60, min_events=5, max_events=5)),
        "who": (6, world_config(num_frames=48, max_events=4, individual_postures=True)),
    }
    for name, (number, config) in worlds.items():
        write_world(place / name, number, 3, config=config, num_test_videos=number, workers=1, preview=False)
    manifests = {name: place / name / "manifest.parquet" for name in worlds}
    more = {"people": manifests["who"], "detections": place / "who" / "people.csv"}
    return plan_jobs(load_sweep(STUDY, manifests["many"], manifests["five"], more), place / "runs")


def run(job: Job) -> None:
    for stage, words in job.commands.items():
        shorter = ["--run.steps=2"] if any("run.steps" in word for word in words) or "--config" in words else []
        batch = ["--data.batch_size=4"] if stage != "video" else []
        assert main([*words, *shorter, *batch]) == 0, stage
        assert stage == "pretrain" or (job.folder / stage / NAME).is_file()


def test_every_evaluation_of_the_study_runs(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the study keeps frames and features in runs/
    first = {job.setting: job for job in reversed(jobs)}
    run(first["TeG-FG"])
    run(first["from scratch"])
    run(first["SimCLR"])
    found = [result for _, result in find_results([first["TeG-FG"].folder])]
    tasks = {"linear probe", "attentive probe", "fine-tune", "boundaries", "localization"}
    assert {result.task for result in found} == tasks
    assert {result.benchmark for result in found} == {"eventworld", "eventworld, events"}
    assert {job.setting for job in jobs} == {"TeG-PS", "TeG-FG", "CVRL", "from scratch", "SimCLR", "ρMoCo", "ρBYOL"}
