"""The command table: every command exists, help is fast to reach, mistakes get one message."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from timegrain.cli import COMMANDS, main


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_a_documented_function(name):
    module, function = COMMANDS[name].target.split(":")
    command = getattr(importlib.import_module(module), function)
    assert "Args:" in command.__doc__
    assert inspect.signature(command).parameters["json"].default is False, "commands that report take --json"
    assert len(COMMANDS[name].summary) < 70


def test_help_lists_all_commands_and_imports_nothing_heavy():
    code = (
        "import sys; from timegrain.cli import main; main(['--help']); "
        "print([name for name in ('torch', 'numpy', 'lightning', 'jsonargparse') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrian"], ["pretrian", "'pretrain'"]),
        (["score", "gedb"], ["score gedb", "score gebd"]),
        (["model-info", "--bakbone", "r3d50"], ["bakbone", "--backbone"]),
        (["manifest", "scan", "nowhere", "--out", "m.parquet"], ["nowhere"]),
    ],
)
def test_mistakes_get_one_message_and_exit_code_two(arguments, words, capsys):
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert all(word in error for word in words)


def test_a_group_lists_its_commands(capsys):
    assert main(["score"]) == 0
    assert "score gebd" in capsys.readouterr().out


def test_errors_of_the_system_name_the_file_and_no_number(capsys, monkeypatch):
    def fails(*rest):
        raise PermissionError(13, "Permission denied", "/root/m.parquet")

    monkeypatch.setattr("timegrain.cli._call", fails)
    assert main(["embed"]) == 2
    assert capsys.readouterr().err == "timegrain embed: error: /root/m.parquet: Permission denied\n"


def test_a_helping_process_that_is_killed_is_one_message(capsys, monkeypatch):
    def fails(*rest):
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr("timegrain.cli._call", fails)
    assert main(["demo"]) == 2
    assert "demo: error: a process that helps here was ended from outside" in capsys.readouterr().err
