"""The demonstration: the whole path on generated videos, in minutes, ending with one page."""

from __future__ import annotations

import json as json_module
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from timegrain.data.eventworld import write_world
from timegrain.demo.jobs import Done, Job, plain, quiet_process, run_job, world_features
from timegrain.demo.page import write_page
from timegrain.files import atomic_path
from timegrain.tasks.eventworld_eval import floors

METHODS = (
    ("TeG-PS (α = 0)", "teg", 0.0),
    ("TeG (α = 0.5)", "teg", 0.5),
    ("TeG-FG (α = 0.9)", "teg", 0.9),
    ("supervised, events", "supervised_inside", 0.0),
    ("supervised, videos", "supervised_video", 0.0),
    ("random weights", "random", 0.0),
    ("raw pixels", "pixels", 0.0),
)


def demo(*, out: Path = Path("runs/demo"), quick: bool = False, seed: int = 0, json: bool = False) -> None:
    """Generate videos, pre-train at three granularities, evaluate, and write one page about it.

    Three worlds of fresh videos (one with `--quick`), and in each: TeG-PS, TeG-FG and α = 0.5, supervised training as the
    ceiling, random weights, raw pixels and constant answers as floors. Sized for ten minutes on two idle CPU cores, or
    two minutes with `--quick`. The same command again keeps what is trained.

    Examples::

        timegrain demo --out runs/demo
        timegrain demo --out runs/quick --quick

    Args:
        out: Folder of everything; ends with report.html and results.json.
        quick: One world, fewer videos and steps. The page says so.
        seed: Of the first world; others follow.
        json: Print the results as one JSON object.
    """
    started = time.time()
    num_train, num_test, steps = (320, 160, 130) if quick else (600, 400, 240)
    worlds = {seed + i: out / "worlds" / f"seed{seed + i}" for i in range(1 if quick else 3)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spent: dict[str, float] = {}
    for number, world in worlds.items():
        write_world(world, num_train, number, "train", num_test_videos=num_test, workers=cores)
    spent["generating videos"] = time.time() - started
    mark = time.time()
    fixed = {}
    for number, world in worlds.items():
        # raw pixels also fill the frame caches that all jobs of a world share
        parts = [world_features(world, split, None) for split in ("train", "test")]
        fixed[number] = floors(*parts)
    spent["decoding once"] = time.time() - mark
    jobs = [
        Job(name, kind, world, out / "jobs" / f"{kind}{f'-a{alpha:g}' if kind == 'teg' else ''}-seed{number}", number,
            steps if kind not in ("random", "pixels") else 0, alpha)
        for name, kind, alpha in METHODS
        for number, world in worlds.items()
    ]  # fmt: skip
    mark = time.time()
    done = _run(jobs, cores)
    spent["training and evaluating"] = time.time() - mark
    spent["in all"] = time.time() - started
    facts = {"train": num_train, "test": num_test, "steps": steps, "quick": quick, "worlds": len(worlds)}
    results = {
        "facts": facts,
        "jobs": [plain(item) for item in done],
        "floors": fixed,
        "seconds": spent,
    }
    with atomic_path(out / "results.json") as temporary:
        temporary.write_text(json_module.dumps(results, indent=1) + "\n")
    page = write_page(out / "report.html", facts, done, fixed, worlds, spent)
    if json:
        print(json_module.dumps({"report": str(page), **results}))
    else:
        print(page)


def _run(jobs: list[Job], cores: int) -> list[Done]:
    """All jobs, one per core at a time, with a line of progress; in the order given."""
    context = multiprocessing.get_context("spawn")
    found: dict[int, Done] = {}
    with (
        ProcessPoolExecutor(min(cores, len(jobs)), mp_context=context, initializer=quiet_process) as pool,
        tqdm(total=len(jobs), desc="training and evaluating", dynamic_ncols=True, file=sys.stderr) as bar,
    ):
        waiting: dict[Any, int] = {pool.submit(run_job, job): index for index, job in enumerate(jobs)}
        bar.set_postfix_str("the first results take a minute")
        for future in as_completed(waiting):
            item = future.result()
            found[waiting[future]] = item
            scores = item.evaluation.scores
            bar.set_postfix_str(f"{item.job.name}, world {item.job.seed}: event {scores['event']:.2f}")
            bar.update()
    return [found[index] for index in sorted(found)]
