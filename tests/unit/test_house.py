"""The plan of docs/design.md holds: every room is on it, imports go down only, no circle, no file without end."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "timegrain"
MAX_LINES = 400


@cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports when it runs, also inside functions; without the leading ``timegrain.``."""
    paths = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items() if name != "__init__"}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        found[name] = set()
        tree = ast.parse(path.read_text())
        typing_only = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in set(ast.walk(tree)) - typing_only:
            names = []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            ours = [other.removeprefix("timegrain.") for other in names if other.startswith("timegrain.")]
            found[name].update(other for other in ours if other in modules and other != name)
    return found


def rooms() -> dict[str, int]:
    """Room -> its line in the plan; rooms of one line stand on one floor."""
    plan = re.search(r"^```\n(cli\.py.*?)^```", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE | re.DOTALL)
    assert plan, "docs/design.md has no plan that begins with cli.py"
    order: dict[str, int] = {}
    for number, line in enumerate(plan[1].splitlines()):
        if not line.startswith(" "):
            for word in re.split(r"\s{2,}", line)[0].split(","):
                order[word.strip().removesuffix(".py").removesuffix("/")] = number
    return order


def test_every_module_is_in_a_room_of_the_plan():
    order = rooms()
    homeless = sorted({name.split(".")[0] for name in imports()} - order.keys())
    assert not homeless, f"not in the plan of docs/design.md: {homeless}"


def test_imports_go_down_only():
    order = rooms()
    up = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in sorted(others)
        if order[name.split(".")[0]] > order[other.split(".")[0]]
    ]
    assert not up, "\n".join(up)


def test_no_circle():
    graph, done = imports(), set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_from_the_command_to_the_loss_in_three_hops():
    from timegrain.cli import COMMANDS

    assert COMMANDS["pretrain"].target == "timegrain.tasks.pretrain:pretrain"
    assert "objectives.teg" in imports()["tasks.pretrain"]
    assert "losses" in imports()["objectives.teg"]


def test_long_files_say_why():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        if len(text.splitlines()) > MAX_LINES:
            docstring = ast.get_docstring(ast.parse(text)) or ""
            assert "One long file" in docstring, f"{path.relative_to(ROOT)} has over {MAX_LINES} lines and no reason"
