"""Finished work, kept beside the output that it goes into: after an interruption the same command goes on from there.

A :class:`Journal` is a file to which every finished piece is appended at once, a JSON object a line. A kill at any moment
costs the pieces that were being worked on: a line that it cut is passed over. A :class:`VideoJournal` keeps what was found
out about each of many videos, and is gone when their output is whole.
"""

from __future__ import annotations

import glob
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from timegrain import __version__
from timegrain.data.isolated import Failure, run_isolated
from timegrain.data.location import cache_key, file_state
from timegrain.files import explained, remove_leftovers
from timegrain.progress import track

Item = TypeVar("Item")
Entry = dict[str, Any]

KEPT = "what was finished is kept, and the same command goes on with the rest"


class Journal:
    """Entries by a name that each carries. Use it as a context manager.

    Args:
        path: The file; made if needed, with its folder.
        name: The field that names an entry; of entries with the same name the last counts.
        restart: Forget what is in it.

    Attributes:
        known: What was in the file, by name.

    Raises:
        OSError: The file cannot be written to.
    """

    def __init__(self, path: Path, name: str, restart: bool = False) -> None:
        self.path = path
        try:
            if restart:
                path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
        self.known: dict[str, Entry] = {
            entry[name]: entry for entry in _entries(path) if isinstance(entry.get(name), str)
        }
        self._begin = "\n" if self._file.tell() else ""  # ends a line that an interruption may have cut

    def add(self, entry: Entry) -> None:
        """Append an entry; it is in the file when this returns.

        Raises:
            OSError: The disk is full.
        """
        with explained(self.path):
            self._file.write(f"{self._begin}{json.dumps(entry)}\n".encode())
            self._file.flush()
        self._begin = ""

    def _close(self) -> None:
        with suppress(OSError):  # what a full disk did not take was said when it was added
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        if isinstance(error, KeyboardInterrupt) and not error.args:
            raise KeyboardInterrupt(KEPT) from None


def _entries(path: Path) -> Iterator[Entry]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


class VideoJournal(Journal):
    """What was found out about each of many videos, until the output is written at the end of the ``with`` block.

    Results of an earlier, interrupted job are taken where video and facts are the same, and one line says how many. What
    could not be read is not kept but tried again, because a disk or a server may be back.

    Args:
        out: The output. The journal lies beside it, hidden, and goes when the block ends without an error.
        videos: Their places.
        facts: For each video what else decides about its result, such as weights and settings: JSON values.
        noun: What they are, if not videos.
        restart: Begin anew.

    Attributes:
        results: By the video's number; JSON values.
        left: Numbers of the videos that had no result when the job began.

    Raises:
        OSError: The folder cannot be written to.
    """

    def __init__(
        self, out: Path, videos: Sequence[str], facts: Sequence[Any], noun: str = "videos", restart: bool = False
    ) -> None:
        super().__init__(out.with_name(f".{out.name}.done.jsonl"), "key", restart)
        remove_leftovers(out.parent, glob.escape(out.stem))
        self.keys = [_key_or_none(video, each) for video, each in zip(videos, facts, strict=True)]
        self.results: dict[int, Any] = {
            number: self.known[key]["result"] for number, key in enumerate(self.keys) if key in self.known
        }
        self.left = [number for number in range(len(videos)) if number not in self.results]
        say_done_before(len(self.results), len(videos), noun)
        if self.known and not self.results:
            print(f"{self.path} is of other {noun}, settings or weights: nothing in it can be used", file=sys.stderr)

    def finish(self, number: int, result: Any) -> None:
        """Keep the result of a video."""
        self.results[number] = result
        key = self.keys[number]
        if key is not None:
            self.add({"key": key, "result": result})

    def run(
        self,
        function: Callable[[Item], Any],
        items: Sequence[Item],
        time_limit_seconds: Callable[[Item], float],
        num_workers: int | None,
        description: str,
    ) -> Iterator[tuple[int, str]]:
        """Finish the videos that are left, with :func:`run_isolated`.

        Args:
            function: From an item to its result.
            items: One per video.
            time_limit_seconds: The longest that an item may take.
            num_workers: Processes; all cores by default.
            description: The words before the progress line.

        Yields:
            Number and reason of each video that failed.
        """
        left = [items[number] for number in self.left]
        if not left:
            return
        for place, outcome in track(
            run_isolated(function, left, time_limit_seconds, num_workers), description, len(left)
        ):
            if isinstance(outcome, Failure):
                yield self.left[place], outcome.reason
            else:
                self.finish(self.left[place], outcome)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        is_of_no_use = error is None or self._file.tell() == 0
        self._close()
        if is_of_no_use:
            self.path.unlink(missing_ok=True)
        super().__exit__(kind, error, traceback)


def work_key(version: Any, path: str, *facts: Any) -> str:
    """A name for what is made of a video: changes with the video's file and with all that decides about the result.

    Args:
        version: Of what makes it.
        path: The video's place.
        *facts: JSON values.

    Raises:
        OSError: There is no such file.
    """
    told = [version, cache_key(path), *file_state(path), *facts]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def _key_or_none(video: str, facts: Any) -> str | None:
    try:
        return work_key(__version__, video, facts)
    except OSError:  # whoever reads it says what is wrong
        return None


def say_done_before(num_done: int, num_videos: int, noun: str = "videos") -> None:
    """Tell, if any were, how many videos need no work any more."""
    if num_done:
        print(f"{num_done:,} of {num_videos:,} {noun} were done before", file=sys.stderr)
