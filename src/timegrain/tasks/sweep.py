"""``timegrain sweep``: one pre-training run per setting and seed, each evaluated, and a figure with the spread.

A sweep is a list of independent jobs. A job pre-trains in a folder of its own and evaluates its weights there; what is
finished is known by its ``result.json``, so the same command again does what is left. Jobs run one after another here,
or as a SLURM array whose script is written on request.
"""

from __future__ import annotations

import dataclasses
import itertools
import json as json_module
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from timegrain.files import atomic_path
from timegrain.progress import track
from timegrain.report.results import NAME, read_result
from timegrain.report.sweep_figures import sweep_grid, sweep_lines

SEED = "{seed}"
_OWN_KEYS = ("command", "config", "out_option", "weights_option")


@dataclass(frozen=True)
class Sweep:
    """What a sweep's YAML holds.

    Args:
        title: Of the figure.
        pretrain: Options of `timegrain pretrain`, by dotted name; `config` names a file beside the sweep's.
        settings: One run each (times the seeds): `name`, and options that differ from `pretrain`, a `config` of its own
            among them. `weights: none` pre-trains nothing: its evaluations begin from random weights. `evaluations` names
            the ones that this setting has, each with options of its own; without it, all.
        evaluations: By name: `command`, and its options. It gets `--weights` and `--out` (or the options that
            `weights_option` and `out_option` name); `config` names a file beside the sweep's; "{seed}" is the run's seed.
        figure: `scores` (EVALUATION.METRIC), and `x` (an option, or absent for names) or `x` and `y` for a grid.
        seeds: Of the runs.
        published: By setting's name, numbers to draw beside ours.
    """

    title: str
    pretrain: Mapping[str, Any]
    settings: Sequence[Mapping[str, Any]]
    evaluations: Mapping[str, Mapping[str, Any]]
    figure: Mapping[str, Any]
    seeds: Sequence[int] = (0, 1, 2)
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One setting under one seed.

    Args:
        setting: Its name.
        seed: Of the run.
        folder: Where everything of it goes.
        commands: By stage, arguments after `timegrain`; the first pre-trains.
    """

    setting: str
    seed: int
    folder: Path
    commands: Mapping[str, Sequence[str]]

    def missing(self) -> list[str]:
        """Stages that still have to run."""
        evaluations = [
            name for name in self.commands if name != "pretrain" and not (self.folder / name / NAME).exists()
        ]
        return [name for name in self.commands if name == "pretrain" or name in evaluations] if evaluations else []


def sweep(
    file: Path,
    *,
    out: Path | None = None,
    videos: Path | None = None,
    eval_videos: Path | None = None,
    manifests: dict[str, Path] | None = None,
    pretrain: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    job: int | None = None,
    slurm: bool = False,
    json: bool = False,
) -> None:
    """Pre-train and evaluate every setting of a sweep under every seed; draw the figure with its spread.

    Finished jobs are skipped, so the same command again goes on where it stopped; a job that fails is named with its log
    and the others go on. The configurations in configs/sweeps are the paper's Fig. 4 (alpha), Fig. 5a (sampling) and
    Fig. 5b (aggregation); configs/tiny has small ones for a CPU.

    Examples::

        timegrain sweep configs/sweeps/alpha.yaml --videos vidsitu.parquet
        timegrain sweep configs/sweeps/alpha.yaml --videos vidsitu.parquet --slurm      # writes OUT/sweep.sbatch
        timegrain sweep configs/tiny/ucf101_4_study.yaml --videos ucf101_4.parquet --pretrain '{"run.steps": 100}'

    Args:
        file: The sweep, a YAML file.
        out: Folder of everything; by default runs/NAME.
        videos: Manifest to pre-train on; stands for {videos} in the file.
        eval_videos: Manifest to evaluate on, by default the same; stands for {eval_videos}.
        manifests: Further ones by name, as {"people": "p.parquet"}; stands for {people}.
        pretrain: Options of `timegrain pretrain` that replace the file's, as {"run.steps": 100}.
        seeds: Instead of the file's.
        job: Run only the job of this number (0 is the first): what each task of a SLURM array does.
        slurm: Write OUT/sweep.sbatch, an array of independent jobs, and run nothing.
        json: Print one JSON object about what is done.
    """
    for path in (videos, eval_videos, *(manifests or {}).values()):
        if path is not None and not path.exists():  # else every job would fail by itself
            raise FileNotFoundError(f"{path} does not exist; the sweep's videos are a manifest (.parquet)")
    plan = load_sweep(file, videos, eval_videos or videos, manifests)
    plan = dataclasses.replace(plan, pretrain={**plan.pretrain, **(pretrain or {})}, seeds=seeds or plan.seeds)
    out = out or Path("runs") / file.stem
    jobs = plan_jobs(plan, out)
    if job is not None and not 0 <= job < len(jobs):
        raise ValueError(f"there is no job {job}; {file} has {len(jobs)}, numbered 0 to {len(jobs) - 1}")
    if slurm and job is not None:
        raise ValueError("--slurm writes a script for all jobs, --job runs one of them: choose one of the two")
    if slurm:
        print(_write_array(out, jobs))
        return
    chosen = jobs if job is None else [jobs[job]]
    waiting = [item for item in chosen if item.missing()]
    print(f"{len(jobs)} jobs, {len(chosen) - len(waiting)} of {len(chosen)} already done: {out}", file=sys.stderr)
    failed = [item for item in track(waiting, "jobs") if not _run(item)]
    record = _collect(plan, jobs, out)
    print(json_module.dumps(record) if json else "\n".join(_said(record)))
    if failed:
        logs = "\n".join(f"  {item.setting}, seed {item.seed}: {item.folder / 'log.txt'}" for item in failed)
        raise ValueError(f"{len(failed)} of {len(chosen)} jobs failed; the same command tries them again:\n{logs}")


def load_sweep(
    file: Path,
    videos: Path | None = None,
    eval_videos: Path | None = None,
    manifests: Mapping[str, Path] | None = None,
) -> Sweep:
    """Read a sweep.

    Args:
        file: The YAML file.
        videos: Put in for ``{videos}``.
        eval_videos: Put in for ``{eval_videos}``.
        manifests: Put in for ``{NAME}``.

    Raises:
        ValueError: The file says something else than a sweep; the message names what.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ValueError(f"{file} {what}; name a sweep's YAML file, such as the paper's in configs/sweeps")
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    names = [item.name for item in dataclasses.fields(Sweep)]
    needed = names[:5]
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no sweep; it needs {', '.join(needed)}")
    unknown, absent = [key for key in values if key not in names], [key for key in needed if key not in values]
    if unknown or absent:
        what = f"unknown key {unknown[0]!r}" if unknown else f"no {absent[0]!r}"
        raise ValueError(f"{file} has {what}; a sweep has {', '.join(names)}")

    _check_shapes(file, values)
    paths = {"videos": videos, "eval_videos": eval_videos, **(manifests or {})}

    def put_in(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put_in(item) for key, item in value.items()}
        if isinstance(value, list):
            return [put_in(item) for item in value]
        if value != SEED and (named := re.fullmatch(r"\{(\w+)\}", str(value))):
            if (path := paths.get(name := named[1])) is None:
                option = (
                    "--videos FILE" if name in ("videos", "eval_videos") else f'--manifests \'{{"{name}": "FILE"}}\''
                )
                raise ValueError(f"{file} leaves the videos open: name a manifest with {option}")
            return str(path)
        return value

    plan = Sweep(**put_in(values))
    settings = [setting.get("name") for setting in plan.settings]
    if None in settings or len(set(settings)) < len(settings):
        raise ValueError(f"every setting of {file} needs a name of its own; got {settings}")

    def beside(values: Mapping[str, Any]) -> dict[str, Any]:
        config = values.get("config")
        return {**values, "config": str((file.parent / config).resolve())} if config else dict(values)

    evaluations = {name: beside(values) for name, values in plan.evaluations.items()}
    plan = dataclasses.replace(
        plan,
        pretrain=beside(plan.pretrain),
        settings=[beside(setting) for setting in plan.settings],
        evaluations=evaluations,
    )
    for setting in plan.settings:
        for name in setting.get("evaluations") or ():
            if name not in plan.evaluations:
                raise ValueError(f"setting {setting['name']!r} of {file} has no evaluation {name!r} to choose")
    for score in _scores(plan):
        evaluation = score.partition(".")[0]
        if evaluation not in plan.evaluations:
            raise ValueError(f"the figure of {file} draws {score!r}, but there is no evaluation {evaluation!r}")
    for axis in (plan.figure[key] for key in ("x", "y") if plan.figure.get(key)):
        for setting in plan.settings:  # else the figure would fail when all runs are done
            try:
                float(setting[axis])
            except (KeyError, TypeError, ValueError):
                what = f"the figure of {file} has {axis} on an axis, but {setting['name']!r} gives no number"
                raise ValueError(what) from None
    return plan


def _check_shapes(file: Path, values: Mapping[str, Any]) -> None:
    """Refuse what is no list or no mapping where one is needed."""

    def refuse(what: str) -> NoReturn:
        raise ValueError(f"{file}: {what}")

    for key in ("pretrain", "evaluations", "figure", "published"):
        if not isinstance(values.get(key, {}), dict):
            refuse(f"{key} holds names with their values, not {values[key]!r}")
    for key in ("settings", "seeds"):
        if key in values and not (isinstance(values[key], list) and values[key]):
            refuse(f"{key} is a list, not {values[key]!r}")
    for setting in values["settings"]:
        if not isinstance(setting, dict):
            refuse(f"a setting holds options with their values, among them a name, not {setting!r}")
        if setting.get("weights", "none") != "none":
            refuse(f"a setting's weights can only be none, which pre-trains nothing, not {setting['weights']!r}")
    for name, evaluation in values["evaluations"].items():
        if name == "pretrain" or not isinstance(evaluation, dict) or "command" not in evaluation:
            refuse(f"evaluation {name!r} needs a command with its options, and another name than pretrain")
    scores = values["figure"].get("scores")
    if not isinstance(scores, list) or not all("." in str(score) for score in scores):
        refuse(f"the figure's scores are a list of EVALUATION.METRIC, not {scores!r}")


def _scores(plan: Sweep) -> list[str]:
    return list(plan.figure.get("scores", ()))


def plan_jobs(plan: Sweep, out: Path) -> list[Job]:
    """All jobs, settings first and seeds inside them."""
    jobs = []
    for setting in plan.settings:
        for seed in plan.seeds:
            name = str(setting["name"])
            folder = out / f"{name.replace('/', '-').replace(' ', '-')}-s{seed}"
            trains = setting.get("weights") != "none"
            commands = (
                {"pretrain": ["pretrain", *_options(_pretraining(plan, setting, seed, folder))]} if trains else {}
            )
            for evaluation in setting.get("evaluations", plan.evaluations):
                values = {**plan.evaluations[evaluation], **((setting.get("evaluations") or {}).get(evaluation) or {})}
                options = {"config": values["config"]} if "config" in values else {}
                if trains:
                    options[values.get("weights_option", "weights")] = str(folder / "weights.safetensors")
                options[values.get("out_option", "out")] = str(folder / evaluation)
                options |= {
                    key: seed if value == SEED else value for key, value in values.items() if key not in _OWN_KEYS
                }
                commands[evaluation] = [*str(values["command"]).split(), *_options(options)]
            jobs.append(Job(name, seed, folder, commands))
    for first, second in itertools.combinations(jobs, 2):
        if first.folder == second.folder:
            raise ValueError(
                f"{first.setting!r} and {second.setting!r} under seed {second.seed} would share the folder "
                f"{second.folder}; give each setting a name of its own, and each seed once"
            )
    return jobs


def _pretraining(plan: Sweep, setting: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    own = {key: value for key, value in setting.items() if key not in ("name", "weights", "evaluations")}
    return {**plan.pretrain, **own, "run.seed": seed, "run.out": str(folder)}


def _options(values: Mapping[str, Any]) -> list[str]:
    words = []
    for key, value in values.items():
        text = value if isinstance(value, str) else json_module.dumps(value)
        words += [f"--{key}", text]
    return words


def _run(job: Job) -> bool:
    """Run what is missing of a job, in processes of its own; all output goes to its log."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("a") as log:
        for stage in job.missing():
            log.write(f"\n$ timegrain {shlex.join(job.commands[stage])}\n")
            log.flush()
            command = [sys.executable, "-m", "timegrain.cli", *job.commands[stage]]
            if subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False).returncode:
                return False
    return True


def _write_array(out: Path, jobs: Sequence[Job]) -> Path:
    """A SLURM script in which every task runs one job of this sweep."""
    words = sys.argv[1:]
    for place in [i for i, word in enumerate(words) if word.partition("=")[0] == "--slurm"][:1]:
        has_value = words[place] == "--slurm" and words[place + 1 : place + 2] == ["true"]
        del words[place : place + 1 + has_value]
    script = out / "sweep.sbatch"
    text = f"""#!/bin/bash
# One task per job; tasks of finished jobs end at once. Add what your cluster wants (partition, account, GPUs, time).
#SBATCH --job-name={out.name}
#SBATCH --array=0-{len(jobs) - 1}
#SBATCH --output={out}/slurm-%a.txt
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=12
{shlex.join([sys.executable, "-m", "timegrain.cli", *words, "--out", str(out)])} --job "$SLURM_ARRAY_TASK_ID"
"""
    with atomic_path(script) as temporary:
        temporary.write_text(text)
    return script


def _collect(plan: Sweep, jobs: Sequence[Job], out: Path) -> dict[str, Any]:
    """Scores of all finished jobs, written to sweep.json and drawn to sweep.png."""
    found: dict[str, dict[str, dict[int, float]]] = {score: {} for score in _scores(plan)}
    floors: dict[str, dict[str, list[float]]] = {score: {} for score in _scores(plan)}
    for job in jobs:
        for score in found:
            evaluation, _, metric = score.partition(".")
            path = job.folder / evaluation / NAME
            if not path.exists():
                continue
            for row in read_result(path).rows:
                if metric not in row.scores:
                    continue
                if row.role == "trained":
                    found[score].setdefault(job.setting, {})[job.seed] = row.scores[metric]
                elif row.role == "floor":
                    floors[score].setdefault(row.method, []).append(row.scores[metric])
    done = sum(not job.missing() for job in jobs)
    record = {"title": plan.title, "out": str(out), "jobs": len(jobs), "done": done, "scores": found, "floors": floors}
    with atomic_path(out / "sweep.json") as temporary:
        temporary.write_text(json_module.dumps(record, indent=1) + "\n")
    if any(found.values()):
        with atomic_path(out / "sweep.png") as temporary:
            temporary.write_bytes(_draw(plan, found, floors))
        record["figure"] = str(out / "sweep.png")
    return record


def _draw(
    plan: Sweep, found: Mapping[str, Mapping[str, Mapping[int, float]]], floors: Mapping[str, Mapping[str, list[float]]]
) -> bytes:
    values = {str(setting["name"]): setting for setting in plan.settings}
    x, y = plan.figure.get("x"), plan.figure.get("y")
    series = {
        score: {name: list(seeds[name].values()) for name in values if name in seeds} for score, seeds in found.items()
    }
    means = {score: {m: sum(v) / len(v) for m, v in methods.items()} for score, methods in floors.items()}
    if x and y:
        places = {name: (float(values[name][x]), float(values[name][y])) for name in values}
        return sweep_grid(series, places, (str(x), str(y)), plan.title)
    numbers = {name: float(values[name][x]) for name in values} if x else None
    return sweep_lines(series, numbers, str(x or ""), plan.title, means, plan.published)


def _said(record: Mapping[str, Any]) -> list[str]:
    from timegrain.report.page import score_cell

    lines = [f"{record['title']}: {record['done']} of {record['jobs']} jobs done"]
    for score, settings in record["scores"].items():
        lines.append(f"{score}")
        lines += [f"  {name:<28} {score_cell(list(seeds.values()))[0]}" for name, seeds in settings.items()]
        lines += [f"  {name:<28} {score_cell(values)[0]}  (floor)" for name, values in record["floors"][score].items()]
    return [*lines, str(record.get("figure", record["out"]))]
