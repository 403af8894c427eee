"""What README, the guide and the examples tell a user to type works: on generated videos, or at least it parses."""

from __future__ import annotations

import inspect
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from conftest import command_name, make_video, moving_square, parse_command
from shard_server import serve
from timegrain.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WEIGHTS = Path("runs/VIDEOS-a0.9/weights.safetensors")
SMALL = [
    "--model.backbone=r3d_tiny", "--model.head_hidden=16", "--model.head_layers=1", "--data.crop_size=32",
    "--data.batch_size=4", "--data.workers=0", "--run.steps=2", "--run.accelerator=cpu", "--run.tensorboard=false",
    "--run.monitor_every_epochs=0",
]  # fmt: skip


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced and the indented code blocks of a page."""
    text = page.read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^\n|\A)((?:^ {4}.*\n?)+)", rest, re.MULTILINE)
    return [*fenced, *(("", inspect.cleandoc(block)) for block in indented)]


def commands(page: Path) -> list[list[str]]:
    """Command lines of a page's code blocks, in order, as words."""
    lines = [line for language, text in blocks(page) if language != "python" for line in _joined(text)]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(\S*/)?(timegrain|make|python) ", line)]


def _joined(text: str) -> list[str]:
    return re.sub(r"\\\n\s*", " ", text).splitlines()


@pytest.mark.parametrize(("page", "words"), [
    pytest.param(page, words, id=f"{page.stem}: {' '.join(words)[:60]}") for page in PAGES for words in commands(page)
])  # fmt: skip
def test_every_command_of_the_docs_parses(page: Path, words: list[str], monkeypatch):
    monkeypatch.chdir(ROOT)
    program = Path(words[0]).name
    if program == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if program == "python":
        assert words[1] == "-m" or (ROOT / words[1]).is_file()
        return
    if words[1] in ("--help", "--version"):
        return
    assert parse_command(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_files_that_prose_names_exist(page: Path):
    text = page.read_text()
    for name in re.findall(r"`timegrain ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", text):
        words = name.split()
        assert any(" ".join(words[:end]) in COMMANDS for end in (1, 2)) or any(
            known.startswith(f"{words[0]} ") for known in COMMANDS
        ), f"{page.name} names `timegrain {name}`"
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def place(video_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the docs assume it: VIDEOS, a.mp4, and after README's first commands also weights and a manifest."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(video_folder, root / "VIDEOS")
    make_video(root / "a.mp4", moving_square(150, seed=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for words in commands(ROOT / "README.md"):
            if words[:2] in (["timegrain", "pretrain"], ["timegrain", "manifest"]):
                assert main([*words[1:], *(SMALL if words[1] == "pretrain" else [])]) == 0
    assert (root / WEIGHTS).is_file()
    return root


def test_the_guides_commands_run_in_order(place: Path, monkeypatch):
    monkeypatch.chdir(place)
    shutil.copytree(ROOT / "configs", place / "configs")
    for words in commands(ROOT / "docs" / "guide.md"):
        if Path(words[0]).name != "timegrain" or words[1] == "prepare":
            continue
        name = command_name(words[1:])
        extra = {
            "pretrain": [*SMALL, "--run.out=runs/guide", "--run.restart=true"], "probe": ["--num_neighbours=3"],
            "bench": [*SMALL, "--seconds=0.5"], "plan": [*SMALL, "--seconds=0.5"],
        }  # fmt: skip
        assert main([*words[1:], *extra.get(name, [])]) == 0, words


def test_the_page_on_shards_runs_in_order(place: Path, tmp_path: Path, monkeypatch):
    for name in ("VIDEOS", "runs"):
        (tmp_path / name).symlink_to(place / name)
    shutil.copy(place / "m.parquet", tmp_path)
    monkeypatch.chdir(tmp_path)
    with serve(tmp_path) as server:
        for words in commands(ROOT / "docs" / "shards.md"):
            if words[1] == "prepare":
                continue
            extra = [*SMALL, "--run.out=remote"] if words[1] == "pretrain" else []
            assert main([*(word.replace("https://HOST", server.url) for word in words[1:]), *extra]) == 0, words
    assert not Path("remote/failed_videos.csv").exists()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "guide.md"], ids=lambda page: page.stem)
def test_python_of_the_docs_runs(page: Path, place: Path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    if not Path("features.parquet").exists():
        assert main(["embed", "VIDEOS", "--weights", str(WEIGHTS), "--out", "features.parquet"]) == 0
    snippets = [text for language, text in blocks(page) if language == "python"]
    assert snippets
    capsys.readouterr()
    for snippet in snippets:
        exec(compile(snippet, page.name, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_yaml_of_the_guide_is_taken(place: Path, monkeypatch):
    monkeypatch.chdir(place)
    (text,) = [text for language, text in blocks(ROOT / "docs" / "guide.md") if language == "yaml"]
    assert len(yaml.safe_load(text)["objective"]["levels"]) == 3
    Path("levels.yaml").write_text(text)
    assert main(["pretrain", "--config=levels.yaml", "--data.folder=VIDEOS", "--run.out=runs/levels", *SMALL]) == 0


def test_examples_run_and_are_short(place: Path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    arguments = {
        "search_neighbours.py": ["VIDEOS", str(WEIGHTS), "a.mp4", "1.5"],
        "find_boundaries.py": ["a.mp4", str(WEIGHTS)],
        "granularity_levels.py": [],
    }
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert {path.name for path in scripts} >= arguments.keys()
    for path in scripts:
        assert len(path.read_text().splitlines()) < 60
        if path.name in arguments:
            monkeypatch.setattr("sys.argv", [str(path), *arguments[path.name]])
            runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(r"^0\.\d{3}  VIDEOS/\w+/v\d\.mp4  at \d", out, re.MULTILINE)
    assert "fine_4x8/loss" in out


def test_the_training_example_trains(place: Path, monkeypatch):
    monkeypatch.chdir(place)
    train = runpy.run_path(str(ROOT / "examples" / "pretrain_in_python.py"))["train"]
    assert train(Path("VIDEOS"), Path("runs/example"), steps=2, crop_size=24, batch_size=4).is_file()
