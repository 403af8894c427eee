"""A run's folder: what its settings bind, where it goes on, and what is moved aside."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from timegrain.files import atomic_path, remove_leftovers
from timegrain.report.results import NAME, REPLACED, SCORED, read_result
from timegrain.tasks.setup import holds_run, is_first_process

# Settings that may differ when a run is continued: they do not change what is learned.
_FREE = {
    *(
        "data.workers",
        "data.cache",
        "data.cache_folder",
        "run.accelerator",
        "run.checkpoint_activations",
        "run.out",
        "run.restart",
        "run.tensorboard",
        "run.wandb",
        "test.batch_size",
        "evaluation.batch_size",
    ),
    *("run.log_every_steps", "run.checkpoint_minutes", "run.checkpoint_every_steps", "run.keep_every_epochs"),
}
# Settings that may differ when a run goes on with another number of processes: they say how its batches are shared.
_WITH_PROCESSES = {
    *("run.devices", "run.num_nodes", "run.accumulate", "run.chunk_size"),
    *("data.batch_size", "optim.learning_rate"),
}
# Settings that runs of earlier versions do not have in their config.yaml, and what they did.
_NEW: dict[str, Any] = {"data.samples_per_visit": 1}


@dataclass(frozen=True)
class Scoring:
    """What concerns only the scores that a command takes after its training.

    Args:
        settings: Names of settings such as ``data.split_test``, or of whole rooms such as ``test``.
        files: What in the run's folder depends on them.
    """

    settings: frozenset[str]
    files: tuple[str, ...]

    def has(self, setting: str) -> bool:
        """Whether a setting, by its dotted name, is one of these."""
        return setting in self.settings or setting.split(".")[0] in self.settings


def settings(configs: dict[str, Any]) -> dict[str, Any]:
    """Plain values of the run's dataclasses, as config.yaml holds them."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(config) for name, config in configs.items()}


def open_run(
    out: Path, configs: dict[str, Any], command: str = "pretrain", scorings: Sequence[Scoring] = ()
) -> Path | None:
    """Make the run's folder, or find where its last visit stopped.

    Args:
        out: The folder.
        configs: The command's settings by name; ``run`` is among them.
        command: The command that repeats the run.
        scorings: What may be asked for anew of a run that was trained with other such settings. Files that depend on
            what has changed go to ``OUT/scored-TIME``, with the config.yaml and the run.json that belong to them.

    Returns:
        The checkpoint to go on from, or None for a new run.

    Raises:
        ValueError: If the folder holds a run with other settings.
    """
    values = settings(configs)
    path = out / "config.yaml"
    checkpoint = out / "checkpoints" / "last.ckpt"
    if configs["run"].restart and not is_first_process():
        return None  # the first process may be moving the old run aside just now
    if is_first_process():
        for folder in (out, checkpoint.parent):
            remove_leftovers(folder)
    if configs["run"].restart and path.exists():
        aside = _new_folder(out, REPLACED)
        for item in [item for item in out.iterdir() if not item.name.startswith((REPLACED, "manifest", "frames"))]:
            item.rename(aside / item.name)
    is_run = holds_run(out)
    if path.exists() and is_run:
        new = _flat(values)
        try:
            old = _flat(yaml.safe_load(path.read_text()))
            is_as_many = _processes(old) == _processes(new)
        except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}; use another --run.out, or --run.restart true") from error
        old = {key: value for key, value in _NEW.items() if key in new} | old
        free = _FREE | ({"run.devices", "run.num_nodes"} if is_as_many else _WITH_PROCESSES)
        changed = [key for key in sorted({*old, *new} - free) if old.get(key) != new.get(key)]
        again = [key for key in changed if any(scoring.has(key) for scoring in scorings)]
        changed = [key for key in changed if key not in again]
        if changed:
            lines = "\n".join(f"  {key}: {old.get(key)!r} there, {new.get(key)!r} asked for" for key in changed)
            raise ValueError(
                f"{out} holds a run with other settings:\n{lines}\n"
                "Use another --run.out, or --run.restart true to begin anew there (the old run is moved aside)"
            )
        if is_first_process():
            _set_aside(out, {key: (old.get(key), new.get(key)) for key in again}, scorings)
    elif is_run:
        raise ValueError(f"{out} has checkpoints or weights but no config.yaml; use another --run.out")
    if is_first_process():
        with atomic_path(path) as temporary:
            temporary.write_text(
                f"# Every setting of this run; `timegrain {command} --config` with this file repeats it.\n"
                + yaml.safe_dump({**values, "run": {**values["run"], "restart": False}}, sort_keys=False)
            )
    return checkpoint if checkpoint.exists() else None


def _set_aside(out: Path, changed: dict[str, tuple[Any, Any]], scorings: Sequence[Scoring]) -> None:
    """Move files of an earlier scoring, so that none stands beside settings that it was not made with."""
    names = [name for scoring in scorings if any(map(scoring.has, changed)) for name in scoring.files]
    files = [out / name for name in names if (out / name).exists()]
    if not files:
        return
    aside = _new_folder(out, SCORED)
    shutil.copy2(out / "config.yaml", aside)
    for file in [*files, out / "run.json"]:
        if file.exists():
            file.rename(aside / file.name)
    with atomic_path(out / "run.json") as temporary:
        record = {"scored_before": sorted(folder.name for folder in out.glob(f"{SCORED}*"))}
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    what = ", ".join(f"{key} {new!r}, before {old!r}" for key, (old, new) in changed.items())
    print(f"scoring again with {what}: the earlier scores are in {aside}", file=sys.stderr)


def set_aside_result(out: Path, protocol: Mapping[str, Any]) -> None:
    """Move the result of several runs, in the folder around theirs, if it is of another protocol than what follows."""
    file = out / NAME
    if file.exists() and read_result(file).protocol != json.loads(json.dumps(protocol)):
        file.rename(_new_folder(out, SCORED) / NAME)


def _new_folder(out: Path, prefix: str) -> Path:
    """A folder for what is moved aside now."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for name in chain([stamp], (f"{stamp}-{number}" for number in count(2))):
        with suppress(FileExistsError):
            (out / f"{prefix}{name}").mkdir()
            return out / f"{prefix}{name}"
    raise AssertionError  # count never ends


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat


def _processes(flat: dict[str, Any]) -> int:
    return int(flat.get("run.devices", 1)) * int(flat.get("run.num_nodes", 1))
