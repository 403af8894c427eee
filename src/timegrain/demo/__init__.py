"""The demonstration: the whole path on generated videos, in minutes, ending with one page."""

from __future__ import annotations

import json as json_module
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from timegrain.data.eventworld import world_config, write_world
from timegrain.demo.jobs import Done, Job, plain, quiet_process, run_job, world_features
from timegrain.demo.page import write_page
from timegrain.demo.reading import FINE, INSIDE_CEILING, MIDDLE, PERSISTENT, PIXELS, PYRAMID, RANDOM, VIDEO_CEILING
from timegrain.files import atomic_path
from timegrain.machine import num_cores
from timegrain.tasks.eventworld_eval import floors

R = TypeVar("R")

METHODS = (
    (PERSISTENT, "teg", 0.0),
    (MIDDLE, "teg", 0.5),
    (FINE, "teg", 0.9),
    (PYRAMID, "pyramid", 0.0),
    (INSIDE_CEILING, "supervised_inside", 0.0),
    (VIDEO_CEILING, "supervised_video", 0.0),
    (RANDOM, "random", 0.0),
    (PIXELS, "pixels", 0.0),
)


def demo(
    *, out: Path = Path("runs/demo"), quick: bool = False, pyramid: bool = False, seed: int = 6, json: bool = False
) -> None:
    """Generate videos, pre-train at several granularities, evaluate, and write one page about it.

    Three worlds of fresh videos (one with `--quick`), and in each: TeG-PS, TeG-FG and α = 0.5, supervised training as the
    ceiling, random weights, raw pixels and constant answers as floors. Sized for ten minutes on two idle CPU cores, or
    two minutes with `--quick`. The same command again keeps what is done.

    Examples::

        timegrain demo --out runs/demo
        timegrain demo --out runs/quick --quick

    Args:
        out: Folder of everything; ends with report.html and results.json.
        quick: One world, fewer videos and steps. The page says so.
        pyramid: Also train four levels at once, one model for all granularities: a quarter more time.
        seed: Of the first world; others follow.
        json: Print the results as one JSON object.

    Raises:
        ValueError: The seed is negative.
    """
    if seed < 0:  # the trainings would refuse it, after the videos are made
        raise ValueError(f"--seed must be at least 0, got {seed}")
    started = time.time()
    num_train, num_test, steps = (320, 160, 120) if quick else (600, 400, 170)
    size = "quick-" if quick else ""  # both may go into one folder, each with worlds and jobs of its own
    worlds = {seed + i: out / "worlds" / f"{size}seed{seed + i}" for i in range(1 if quick else 3)}
    cores = num_cores()
    spent: dict[str, float] = {}
    for number, world in worlds.items():
        write_world(
            world, num_train, number, "train", config=world_config("calm"), num_test_videos=num_test, workers=cores
        )
    spent["generating videos"] = time.time() - started
    mark = time.time()
    parts = [(number, split) for number in worlds for split in ("train", "test")]
    features = _run(world_features, [(worlds[number], split, None) for number, split in parts], "decoding once", cores)
    known = dict(zip(parts, features, strict=True))
    fixed = {number: floors(known[number, "train"], known[number, "test"]) for number in worlds}
    spent["decoding once"] = time.time() - mark
    jobs = [
        Job(name, kind, world, out / "jobs" / f"{kind}{f'-a{alpha:g}' if kind == 'teg' else ''}-{size}seed{number}", number,
            0 if kind in ("random", "pixels") else steps, alpha)
        for name, kind, alpha in METHODS if pyramid or kind != "pyramid"
        for number, world in worlds.items()
    ]  # fmt: skip
    mark = time.time()
    done = _run(run_job, [(job,) for job in jobs], "training and evaluating", cores, _news)
    spent["training and evaluating"] = time.time() - mark
    spent["in all"] = time.time() - started
    facts = {
        "train": num_train,
        "test": num_test,
        "worlds": len(worlds),
        "steps": steps,
        "pyramid": pyramid,
        "quick": quick,
    }
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


def _news(done: Done) -> str:
    return f"{done.job.name}, world {done.job.seed}: event class {done.scores['event']:.2f}"


def _run(
    work: Callable[..., R],
    calls: Sequence[tuple[Any, ...]],
    what: str,
    cores: int,
    news: Callable[[R], str] | None = None,
) -> list[R]:
    """All calls, one per core at a time, with a line of progress; results in the order given."""
    context = multiprocessing.get_context("spawn")
    found: dict[int, R] = {}
    with (
        ProcessPoolExecutor(min(cores, len(calls)), mp_context=context, initializer=quiet_process) as pool,
        tqdm(total=len(calls), desc=what, dynamic_ncols=True, file=sys.stderr) as bar,
    ):
        waiting = {pool.submit(work, *arguments): index for index, arguments in enumerate(calls)}
        if news:
            bar.set_postfix_str("the first results take a minute")
        try:
            for future in as_completed(waiting):
                result = found[waiting[future]] = future.result()
                if news:
                    bar.set_postfix_str(news(result))
                bar.update()
        except BaseException:
            # Ctrl-C reaches the workers too and ends what they do; what waits must not be begun.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[index] for index in sorted(found)]
