"""The console command: a table of commands, of which only the chosen one is imported.

``timegrain --help`` therefore starts as fast as Python does: no torch, no numpy. Each command is a plain typed
function; jsonargparse turns its signature and docstring into options and help.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple


class Command(NamedTuple):
    """Where a command lives and what it does, in one line."""

    target: str
    summary: str


COMMANDS: dict[str, Command] = {
    "demo": Command("timegrain.demo:demo", "generate videos, pre-train, evaluate, write a report page"),
    "pretrain": Command("timegrain.tasks.pretrain:pretrain", "pre-train TeG on a folder or manifest of videos"),
    "plan": Command("timegrain.tasks.planning:plan", "before a pre-training: what bounds it, hours, memory, CPU cores"),
    "bench": Command("timegrain.tasks.bench:bench", "disk, decoding, augmentation, model: which is the limit here"),
    "doctor": Command("timegrain.tasks.doctor:doctor", "can this machine train? versions, decoders, devices, disk"),
    "explore": Command("timegrain.tasks.explore:explore", "features, boundaries and pictures of your videos, one page"),
    "embed": Command("timegrain.tasks.embed:embed", "features of videos of any length, as Parquet"),
    "similarity": Command("timegrain.tasks.embed:similarity", "a video's self-similarity matrix, as a picture"),
    "probe": Command("timegrain.tasks.probe:probe", "linear probe, kNN and retrieval on frozen features"),
    "probe linear": Command(
        "timegrain.tasks.online_probe:probe_linear", "linear evaluation, trained on augmented clips"
    ),
    "probe attentive": Command("timegrain.tasks.online_probe:probe_attentive", "a learned query on frozen time steps"),
    "probe vidsitu": Command("timegrain.tasks.vidsitu:probe_vidsitu", "verbs of VidSitu's events, frozen features"),
    "finetune": Command(
        "timegrain.tasks.finetune:finetune", "train a whole network on labels, from weights or scratch"
    ),
    "finetune vidsitu": Command("timegrain.tasks.vidsitu:finetune_vidsitu", "verbs of VidSitu's events, whole network"),
    "boundaries train": Command("timegrain.tasks.boundaries:train", "train a detector of event boundaries, score it"),
    "boundaries evaluate": Command(
        "timegrain.tasks.boundary_evaluation:evaluate", "F1 of a trained detector beside its floors"
    ),
    "boundaries find": Command("timegrain.tasks.boundary_find:find", "event boundaries of your videos, as csv or JSON"),
    "localize": Command("timegrain.tasks.localization:localize", "who does what in AVA-Kinetics: train, score"),
    "sweep": Command("timegrain.tasks.sweep:sweep", "pre-train and evaluate settings x seeds; draw the figure"),
    "report": Command("timegrain.report.results_page:report", "results of many runs as one page and one table"),
    "manifest scan": Command("timegrain.data.scan:scan", "list a folder of videos into a manifest"),
    "manifest check": Command("timegrain.data.check:check", "decode what training would decode; report coverage"),
    "manifest shards": Command(
        "timegrain.data.shard_commands:scan_shards", "list the videos of tar shards, local or behind URLs"
    ),
    "manifest pack": Command("timegrain.data.shard_commands:pack", "pack a manifest's videos into tar shards"),
    "manifest move": Command("timegrain.data.shard_commands:move", "a manifest for videos that moved, to a URL too"),
    "prepare": Command("timegrain.data.benchmarks.prepare:prepare", "join official annotations with your videos"),
    "eventworld": Command("timegrain.data.eventworld:eventworld", "generate videos with known events and boundaries"),
    "score gebd": Command("timegrain.tasks.score:score_gebd", "F1 of event boundaries, as the official programs"),
    "score vidsitu": Command("timegrain.tasks.score:score_vidsitu", "VidSitu verb scores, within-video matching"),
    "score ava": Command("timegrain.tasks.score:score_ava", "frame-mAP of AVA and AVA-Kinetics"),
    "score topk": Command("timegrain.tasks.score:score_topk", "multi-view top-1, top-5 and mean class accuracy"),
    "score retrieval": Command("timegrain.tasks.score:score_retrieval", "nearest-neighbour retrieval, recall at k"),
    "floors gebd": Command("timegrain.tasks.floors:floors_gebd", "GEBD without a model: even spacing, people"),
    "floors vidsitu": Command("timegrain.tasks.floors:floors_vidsitu", "VidSitu without a model: constants, people"),
    "floors kinetics": Command("timegrain.tasks.floors:floors_kinetics", "the most frequent class"),
    "floors ava": Command("timegrain.tasks.floors:floors_ava", "AVA without a model: class prior"),
    "floors scenedetect": Command("timegrain.tasks.video_floors:floors_scenedetect", "boundaries: shot cuts"),
    "floors change": Command("timegrain.tasks.video_floors:floors_change", "boundaries: change of picture and motion"),
    "model-info": Command("timegrain.models.info:model_info", "parameters, shapes and multiply-adds of a backbone"),
    "inflate-weights": Command(
        "timegrain.models.inflate:inflate_weights", "a network for videos from one for single frames (SimCLR)"
    ),
    "convert-weights": Command(
        "timegrain.models.convert:convert_weights", "weights of a TensorFlow checkpoint (CVRL's R3D-50)"
    ),
}


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: timegrain COMMAND [OPTIONS]",
        "",
        "Self-supervised video features whose temporal granularity you choose.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        "Start here:",
        "  timegrain demo --out runs/demo --quick      two minutes, one page of results",
        "  timegrain pretrain --data.folder VIDEOS     learn features from a folder, no labels needed",
        "  timegrain embed VIDEOS --weights W --out features.parquet",
        "",
        "`timegrain COMMAND --help` explains each; `timegrain --version` prints the version.",
    ]
    return "\n".join(lines)


def _find(arguments: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """The longest command that the arguments start with, and what follows it."""
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if len(arguments) >= length and name in COMMANDS:
            return name, arguments[length:]
    return None


def _unknown(arguments: Sequence[str]) -> str:
    import difflib

    first = arguments[0]
    group = [name for name in COMMANDS if name.startswith(first + " ")]
    if group and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        return "\n".join(f"  timegrain {name:<18} {COMMANDS[name].summary}" for name in group)
    typed = " ".join(arguments[:2]) if group else first
    close = difflib.get_close_matches(typed, COMMANDS, n=2)
    hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    return f"timegrain: error: unknown command {typed!r}.{hint} `timegrain --help` lists the commands."


def _call(name: str, arguments: Sequence[str]) -> Any:
    from timegrain.parsing import run

    module, function = COMMANDS[name].target.split(":")
    return run(getattr(importlib.import_module(module), function), name, arguments)


def _words(error: Exception) -> str:
    """An error as people read it: of the system's own the file and what happened, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What was typed after ``timegrain``; the process's own arguments by default.

    Returns:
        The exit code: 0, or 2 for anything that the user can put right (the message says how).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        from timegrain import __version__

        print(f"timegrain {__version__}")
        return 0
    found = _find(arguments)
    if found is None:
        message = _unknown(arguments)
        is_error = message.startswith("timegrain: error")
        print(message, file=sys.stderr if is_error else sys.stdout)
        return 2 if is_error else 0
    name, rest = found
    try:
        _call(name, rest)
    except (ValueError, OSError) as error:
        if os.environ.get("TIMEGRAIN_DEBUG"):
            raise
        print(f"timegrain {name}: error: {_words(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        is_pool = type(error).__name__ == "BrokenProcessPool"  # of `demo` and `eventworld`
        is_loader = "DataLoader worker" in str(error) and "Caught" not in str(error)
        if not (is_loader or is_pool) or os.environ.get("TIMEGRAIN_DEBUG"):
            raise
        does = "decodes videos" if is_loader else "helps here"
        print(
            f"timegrain {name}: error: a process that {does} was ended from outside "
            f"({str(error).splitlines()[0]}), most often because memory ran out, or the space for shared memory "
            "(/dev/shm): try fewer workers or a smaller batch. The same command goes on with what is done",
            file=sys.stderr,
        )
        return 2
    except MemoryError:
        print(f"timegrain {name}: error: not enough memory for this input", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"timegrain {name}: interrupted{f'; {interrupt}' if interrupt.args else ''}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
