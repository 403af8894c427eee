"""What stopped a training run, in words for people."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path


def in_words(error: Exception, out: Path, last: Path, is_alone: bool) -> Exception | None:
    """What stopped a run and what to do, for people; None where the error says it, or is ours.

    Args:
        error: What was raised in training.
        out: The run's folder.
        last: Where its last checkpoint would be.
        is_alone: No other process trains with this one.
    """
    text, next_time = str(error), f"The same command {where_it_goes_on(last)}"
    # An error that a worker met comes with its whole traceback; the last thing in it is the error's own message.
    caught = re.search(r"Caught (\w+) in DataLoader worker process", text)
    if caught:
        said = re.findall(rf"^(?:\w+\.)*{caught[1]}: (.*)", text, re.MULTILINE | re.DOTALL)
        is_for_people = caught[1] in ("VideoError", "ValueError", "FileNotFoundError", "PermissionError", "OSError")
        return ValueError(f"{said[-1].strip()}. {next_time}") if said and is_for_people else None
    if isinstance(error, OSError) and error.errno is not None:
        what = f"{error.filename or out} could not be written or read: {error.strerror}"
        return OSError(f"{what}. {next_time} once that is put right; nothing that was there before is lost")
    if "out of memory" in text or "can't allocate memory" in text:
        return ValueError(
            f"memory ran out ({text.splitlines()[0]}). Lower --data.batch_size, --data.crop_size or the number "
            f"of frames, or try --run.precision bf16-mixed on a GPU. The last checkpoint, if any, is {last}"
        )
    # The news of a worker that was killed comes as a signal, in the middle of whatever runs then; some code wraps it.
    ended = next((str(link) for link in _with_causes(error) if "DataLoader worker" in str(link)), None)
    if ended is not None:
        return ValueError(
            f"a process that decodes videos was ended from outside ({ended.splitlines()[0]}), most often because memory "
            "ran out, or the space for shared memory (/dev/shm): try fewer --data.workers or a smaller --data.batch_size. "
            f"{next_time}"
        )
    if "EADDRINUSE" in text:
        return ValueError(
            f"another program has port {os.environ.get('MASTER_PORT', '')}, where the processes of this run would meet: "
            f"set MASTER_PORT to a free one, or leave it out and one is chosen. {next_time}"
        )
    if not is_alone and re.search(r"[Cc]onnection (closed|reset)|NCCL|[Gg]loo|Broken pipe|timed? ?out", text):
        return ValueError(
            f"another process of this run ended, and this one cannot go on without it ({text.splitlines()[0]}). What it "
            f"said itself is above. {next_time}"
        )
    return None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def where_it_goes_on(checkpoint: Path) -> str:
    """What the same command would do: go on from this checkpoint, or begin anew."""
    return f"continues from {checkpoint}" if checkpoint.exists() else "begins anew: there is no checkpoint yet"
