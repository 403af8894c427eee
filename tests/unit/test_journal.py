"""What was finished outlives a kill at any byte; what is of another job is never taken for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from timegrain.data import journal
from timegrain.data.journal import Journal, VideoJournal, work_key
from timegrain.files import atomic_path


def read(path: Path) -> dict[str, journal.Entry]:
    with Journal(path, "a") as notes:
        return notes.known


def test_a_journal_gives_back_what_was_added(tmp_path: Path):
    path = tmp_path / "folder" / "done.jsonl"
    assert read(path) == {}
    with Journal(path, "a") as notes:
        notes.add({"a": "1", "value": [0.1, None, "ä\udc80"]})
        notes.add({"a": "2"})
        assert len(read(path)) == 2  # at once
        notes.add({"a": "1", "value": 3})
    assert read(path) == {"1": {"a": "1", "value": 3}, "2": {"a": "2"}}
    with Journal(path, "a", restart=True) as notes:
        assert notes.known == {}
    assert path.read_bytes() == b""


def test_a_journal_outlives_a_cut_at_any_byte(tmp_path: Path):
    path = tmp_path / "done.jsonl"
    entries = [{"a": str(number), "value": [number, "}\n{"]} for number in range(3)]
    with Journal(path, "a") as notes:
        for entry in entries:
            notes.add(entry)
    whole = path.read_bytes()
    ends = [end for end, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        before = entries[: sum(end <= cut for end in ends)]
        with Journal(path, "a") as notes:
            assert list(notes.known.values()) == before
            notes.add({"a": "new"})
        assert list(read(path).values()) == [*before, {"a": "new"}]


def test_lines_of_something_else_are_passed_over(tmp_path: Path):
    path = tmp_path / "done.jsonl"
    path.write_bytes(b'\n{"a": "1"}\n[2]\n{"a": "2", "b\n\xff\x00\n{"b": "3"}\n{"a": 4}\n{"a": "5"}\n')
    assert read(path) == {"1": {"a": "1"}, "5": {"a": "5"}}


def test_a_journal_that_cannot_be_written_says_so_at_once(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/done.jsonl cannot be written: (Not a directory|File exists)"):
        Journal(tmp_path / "file" / "done.jsonl", "a")


@pytest.fixture
def videos(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{name}.mp4" for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return list(map(str, paths))


def work(out: Path, videos: list[str], facts: list[object], results: list[object], ends: BaseException) -> None:
    with VideoJournal(out, videos, facts) as notes:
        for number, result in zip(notes.left, results, strict=False):
            notes.finish(number, result)
        raise ends


def interrupt(out: Path, videos: list[str], facts: list[object], results: list[object]) -> Path:
    with pytest.raises(KeyboardInterrupt, match="same command goes on"):
        work(out, videos, facts, results, KeyboardInterrupt())
    return out.with_name(f".{out.name}.done.jsonl")


def test_a_video_journal_goes_on_and_is_gone_at_the_end(videos, tmp_path: Path, capsys):
    out = tmp_path / "out" / "found.csv"
    path = interrupt(out, videos, [1, 1, 1], [{"x": 0.1}, None])
    assert path.parent == out.parent
    assert path.name.startswith(".")
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):
        work(out, videos, [1, 1, 1], [], ZeroDivisionError())
    assert capsys.readouterr().err == "2 of 3 videos were done before\n"
    with atomic_path(out) as temporary:  # of a process that was killed while it wrote the output
        temporary.touch()
        left = temporary.with_name(temporary.name.replace(f".{os.getpid()}@", ".999999999@"))
        left.touch()
    with VideoJournal(out, videos, [1, 1, 1]) as notes:
        assert (notes.results, notes.left) == ({0: {"x": 0.1}, 1: None}, [2])
        notes.finish(2, [])
        assert path.is_file()
    assert list(out.parent.iterdir()) == [out]


def test_a_job_that_finishes_nothing_leaves_nothing(videos, tmp_path: Path):
    out = tmp_path / "out" / "found.csv"
    assert not interrupt(out, videos, [1, 1, 1], []).exists()


def test_other_facts_and_changed_videos_are_done_anew(videos, tmp_path: Path, capsys):
    out = tmp_path / "found.csv"
    interrupt(out, videos, [1, 1, 1], ["A", "B"])
    Path(videos[0]).write_text("longer than before")
    interrupt(out, [*reversed(videos), "gone.mp4"], [1] * 4, [])
    assert "1 of 4 videos were done before" in capsys.readouterr().err
    with VideoJournal(out, videos, [1, 1, 2]) as notes:
        assert (notes.results, notes.left) == ({1: "B"}, [0, 2])
        notes.finish(0, "new")
        notes.finish(2, "other")
    interrupt(out, videos, [1, 1, 1], ["A", "B"])
    capsys.readouterr()
    interrupt(out, videos, [2, 2, 2], [])
    assert "is of other videos, settings or weights: nothing in it can be used" in capsys.readouterr().err
    with VideoJournal(out, videos, [1, 1, 1]) as notes:  # which did not cost what was there
        assert notes.results == {0: "A", 1: "B"}


def test_another_version_s_results_are_not_mixed_in(videos, tmp_path: Path, monkeypatch):
    out = tmp_path / "found.csv"
    interrupt(out, videos, [1, 1, 1], ["A"])
    monkeypatch.setattr(journal, "__version__", "another")
    with VideoJournal(out, videos, [1, 1, 1]) as notes:
        assert notes.results == {}


def test_a_video_that_is_not_there_is_never_noted(tmp_path: Path):
    out = tmp_path / "found.csv"
    path = interrupt(out, ["gone.mp4", "https://host/a.mp4"], [1, 1], ["nothing", "something"])
    assert [json.loads(line)["result"] for line in path.read_text().splitlines()] == ["something"]


def test_a_key_tells_facts_versions_and_urls_apart(videos):
    keys = {
        work_key(1, videos[0], 1, {"a": 2}),
        work_key(2, videos[0], 1, {"a": 2}),
        work_key(1, videos[1], 1, {"a": 2}),
        work_key(1, videos[0], 1, {"a": 3}),
        work_key(1, "https://host/a.mp4?id=1"),
        work_key(1, "https://host/a.mp4?id=2"),
    }
    assert len(keys) == 6
    with pytest.raises(FileNotFoundError):
        work_key(1, "gone.mp4")
