"""Sweeps: which jobs a file means, what is left to do, what is collected and drawn."""

import json
from pathlib import Path

import pytest
import yaml

from conftest import parse_command
from timegrain.report.results import Result, Row, write_result
from timegrain.tasks.sweep import load_sweep, plan_jobs, sweep

PLAN = {
    "title": "weight of the fine-grained loss",
    "pretrain": {"config": "base.yaml", "data.manifest": "{videos}", "run.steps": 2},
    "settings": [{"name": f"α = {alpha:g}", "objective.alpha": alpha} for alpha in (0.0, 0.5, 0.9)],
    "evaluations": {"probe": {"command": "probe", "manifest": "{eval_videos}", "num_clips": 1}},
    "figure": {"x": "objective.alpha", "scores": ["probe.linear"]},
    "seeds": [0, 1],
    "published": {"α = 0": 0.28, "α = 0.9": 0.31},
}


def write(folder, **changes):
    path = folder / "alpha.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**PLAN, **changes}.items() if value is not None}))
    return path


def finish(job, score):
    rows = [Row("TeG", {"linear": score}, seed=job.seed), Row("majority", {"linear": 0.25}, "floor")]
    write_result(job.folder / "probe", Result("videos", "linear probe", {"linear": "top-1"}, rows))


def test_jobs_are_settings_times_seeds_with_their_options(tmp_path):
    plan = load_sweep(write(tmp_path), tmp_path / "train.parquet", tmp_path / "test.parquet")
    jobs = plan_jobs(plan, tmp_path / "out")
    assert [(job.setting, job.seed) for job in jobs] == [
        ("α = 0", 0), ("α = 0", 1), ("α = 0.5", 0), ("α = 0.5", 1), ("α = 0.9", 0), ("α = 0.9", 1)
    ]  # fmt: skip
    assert len({job.folder for job in jobs}) == 6
    words = list(jobs[3].commands["pretrain"])
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "pretrain"
    assert options["--config"] == str(tmp_path / "base.yaml")
    assert options["--data.manifest"] == str(tmp_path / "train.parquet")
    assert (options["--objective.alpha"], options["--run.seed"]) == ("0.5", "1")
    evaluation = " ".join(jobs[3].commands["probe"])
    assert f"--weights {jobs[3].folder}/weights.safetensors" in evaluation
    assert f"--manifest {tmp_path}/test.parquet" in evaluation


def test_what_is_done_is_skipped_and_what_fails_is_named(tmp_path, capsys, monkeypatch):
    file = write(tmp_path, settings=PLAN["settings"][:2], seeds=[0])
    plan = load_sweep(file, tmp_path / "v.parquet", tmp_path / "v.parquet")
    first, second = plan_jobs(plan, tmp_path / "out")
    finish(first, 0.5)
    asked = []

    def run(command, stdout, **_):
        asked.append(command)
        stdout.write("no such manifest\n")
        return type("Done", (), {"returncode": 2})

    monkeypatch.setattr("timegrain.tasks.sweep.subprocess.run", run)
    with pytest.raises(ValueError, match=r"1 of 2 jobs failed.*\n.*α = 0.5, seed 0: .*log.txt"):
        sweep(file, out=tmp_path / "out", videos=tmp_path)
    assert len(asked) == 1  # the evaluation is not tried after a pre-training that failed
    assert "no such manifest" in (second.folder / "log.txt").read_text()
    assert "1 of 2 jobs done" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["line", "names", "grid"])
def test_finished_jobs_are_collected_with_their_floors_and_drawn(tmp_path, capsys, kind):
    settings = [
        {"name": f"{n} x {m}", "objective.num_short": n, "objective.num_long": m} for n in (1, 2) for m in (1, 4)
    ]
    figure = {
        "line": PLAN["figure"],
        "names": {"scores": ["probe.linear"]},
        "grid": {"x": "objective.num_short", "y": "objective.num_long", "scores": ["probe.linear"]},
    }[kind]
    file = write(tmp_path, figure=figure, settings=settings if kind == "grid" else PLAN["settings"])
    jobs = plan_jobs(load_sweep(file, tmp_path, tmp_path), tmp_path / "out")
    for number, job in enumerate(jobs):
        finish(job, 0.3 + 0.02 * number)
    sweep(file, out=tmp_path / "out", videos=tmp_path, json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["done"] == record["jobs"] == len(jobs)
    assert record["scores"]["probe.linear"][jobs[1].setting] == {"0": 0.3, "1": 0.32}
    assert record["floors"]["probe.linear"] == {"majority": [0.25] * len(jobs)}
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("asked", [["--slurm"], ["--slurm=true"], ["--slurm", "true"]])
def test_a_slurm_array_runs_one_job_per_task(tmp_path, capsys, monkeypatch, asked):
    file = write(tmp_path)
    monkeypatch.setattr("sys.argv", ["timegrain", "sweep", str(file), *asked, "--videos", "v.parquet"])
    sweep(file, out=tmp_path / "out", videos=tmp_path, slurm=True)
    text = (tmp_path / "out" / "sweep.sbatch").read_text()
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "sweep.sbatch")
    assert "--array=0-5" in text
    assert '--job "$SLURM_ARRAY_TASK_ID"' in text
    assert f"sweep {file} --videos v.parquet --out" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titel": "x"}, "unknown key 'titel'"),
        ({"figure": None}, "no 'figure'"),
        ({"settings": [{"name": "a"}, {"name": "a"}]}, "needs a name of its own"),
        ({"figure": {"scores": ["gebd.f1"]}}, "no evaluation 'gebd'"),
        ({"figure": {"scores": "probe.top1"}}, "a list of EVALUATION.METRIC"),
        ({"figure": {"scores": ["probe"]}}, "a list of EVALUATION.METRIC"),
        ({"figure": 3}, "figure holds names with their values, not 3"),
        ({"settings": PLAN["settings"] + [{"name": "PS"}]}, "objective.alpha on an axis, but 'PS' gives no number"),
        ({"settings": 3}, "settings is a list, not 3"),
        ({"settings": ["a"]}, "a setting holds options with their values, among them a name, not 'a'"),
        ({"settings": [{"name": "a", "weights": "w"}]}, "weights can only be none"),
        ({"seeds": 3}, "seeds is a list, not 3"),
        ({"evaluations": {"probe": {"manifest": "m"}}}, "evaluation 'probe' needs a command"),
        ({"settings": [{"name": "a b", "objective.alpha": 0}, {"name": "a-b", "objective.alpha": 1}]}, "would share"),
        ({"seeds": [0, 0]}, "would share the folder"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        plan_jobs(load_sweep(write(tmp_path, **changes), tmp_path, tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is a folder; name a sweep's YAML file"),
        (b"a: [1", "is not YAML"),
        (b"\x80", "is not YAML"),
        (b"- 1", "no sweep"),
    ],
)
def test_what_is_no_file_of_a_sweep_is_named(tmp_path, content, message):
    file = tmp_path / "sweep.yaml"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=f"sweep.yaml .*{message}"):
        load_sweep(file, tmp_path, tmp_path)


def test_videos_that_are_not_there_are_told_before_any_job(tmp_path):
    for named in (
        {"videos": tmp_path / "no.parquet"},
        {"videos": tmp_path, "manifests": {"p": tmp_path / "no.parquet"}},
    ):
        with pytest.raises(FileNotFoundError, match=r"no\.parquet does not exist"):
            sweep(write(tmp_path), out=tmp_path / "out", **named)
    assert not (tmp_path / "out").exists()


def test_a_setting_may_pretrain_nothing_and_choose_its_evaluations(tmp_path):
    evaluations = {
        **PLAN["evaluations"],
        "finetune": {"command": "finetune", "data.manifest": "{people}", "weights_option": "w", "run.seed": "{seed}"},
    }
    scratch = {"name": "scratch", "weights": "none", "evaluations": {"finetune": {"model.backbone": "r3d_tiny"}}}
    other = {"name": "cvrl", "config": "cvrl.yaml"}
    by_name = {"scores": ["probe.linear"]}
    file = write(tmp_path, evaluations=evaluations, settings=[*PLAN["settings"][:1], other, scratch], figure=by_name)
    plan = load_sweep(file, tmp_path / "v", tmp_path / "v", {"people": tmp_path / "p.parquet"})
    jobs = plan_jobs(plan, tmp_path / "out")
    assert [list(job.commands) for job in jobs[::2]] == [["pretrain", "finetune", "probe"]] * 2 + [["finetune"]]
    assert f"--w {jobs[1].folder}/weights.safetensors" in " ".join(jobs[1].commands["finetune"])
    assert f"--config {tmp_path}/cvrl.yaml" in " ".join(jobs[2].commands["pretrain"])
    said = " ".join(jobs[5].commands["finetune"])
    assert "--w " not in said
    for words in ("--model.backbone r3d_tiny", f"--data.manifest {tmp_path}/p.parquet", "--run.seed 1"):
        assert words in said
    assert jobs[5].missing() == ["finetune"]
    with pytest.raises(ValueError, match="people"):
        load_sweep(file, tmp_path / "v", tmp_path / "v")
    scratch["evaluations"] = {"nothing": {}}
    with pytest.raises(ValueError, match="no evaluation 'nothing'"):
        load_sweep(write(tmp_path, settings=[scratch], figure=by_name), tmp_path / "v", tmp_path / "v")


def test_open_videos_and_impossible_jobs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--videos"):
        load_sweep(write(tmp_path))
    with pytest.raises(ValueError, match="choose one of the two"):
        sweep(write(tmp_path), out=tmp_path / "out", videos=tmp_path, job=0, slurm=True)
    with pytest.raises(ValueError, match="no job 6"):
        sweep(write(tmp_path), out=tmp_path / "out", videos=tmp_path, job=6)
    with pytest.raises(ValueError, match="does not exist"):
        load_sweep(tmp_path / "none.yaml")


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_name_what_there_is(tmp_path, file):
    if "settings" not in yaml.safe_load(file.read_text()):
        return
    more = {"people": tmp_path / "p.parquet", "detections": tmp_path / "d.csv"}
    plan = load_sweep(file, tmp_path / "v.parquet", tmp_path / "v.parquet", more)
    jobs = plan_jobs(plan, tmp_path)
    assert len(jobs) == len(plan.settings) * len(plan.seeds)
    assert len(plan.seeds) >= 3
    for job in jobs:
        if job.seed == plan.seeds[0] and (job is jobs[0] or "pretrain" not in job.commands):
            for words in job.commands.values():
                # Every option of every stage is one that its command knows: the parser is asked, nothing is run.
                assert parse_command(list(words))
    assert f"timegrain sweep configs/{file.parent.name}/{file.name}" in file.read_text()
    assert set(plan.published) <= {str(setting["name"]) for setting in plan.settings}
