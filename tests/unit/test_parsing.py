"""Help that teaches: every command says what it is for, shows a command to copy, and lists options that it has."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
from jsonargparse import capture_parser

from conftest import parse_command
from timegrain.cli import COMMANDS, main
from timegrain.parsing import described, prepare, run, takes_config


def command(name: str):
    module, function = COMMANDS[name].target.split(":")
    return getattr(importlib.import_module(module), function)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_shows_an_example_that_parses(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: timegrain {name} ")
    assert "<class" not in text
    assert "Returns:" not in text
    text = re.sub(r"\\\n\s*", " ", text)  # lines continued with a backslash
    examples = re.findall(rf"^ +(timegrain {name} .*)$", text, re.MULTILINE)
    assert examples, f"`timegrain {name} --help` shows no example (`Examples::` before `Args:` in its docstring)"
    function = command(name)
    for example in examples:
        arguments = shlex.split(example, comments=True)[1 + len(name.split()) :]
        # A configuration file need not be there for the rest of the line to be right.
        arguments = [word for at, word in enumerate(arguments) if "--config" not in [word, *arguments[at - 1 : at]]]
        if takes_config(function) and arguments and not arguments[0].startswith("-"):
            arguments = arguments[1:]
        parser = capture_parser(lambda function=function: run(function, name, ["--help"]))
        assert parser.parse_args(prepare(arguments, list(inspect.signature(function).parameters.values())))


def test_text_before_the_sections_is_the_description():
    def function() -> None:
        """Do a thing.

        It is ``good``.

        Examples::

            do --this
            do --that

        Args:
            nothing: Not shown.
        """

    assert described(function) == "Do a thing.\n\nIt is `good`.\n\nExamples:\n\n    do --this\n    do --that"


def test_required_options_are_in_the_usage_line_and_flags_take_no_value(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["embed", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: timegrain embed VIDEOS [...] --weights WEIGHTS --out OUT [OPTIONS]")
    assert re.search(r"--json +Print one", text)
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    usage = capsys.readouterr().out.splitlines()[0]
    assert usage.startswith("usage: timegrain prepare {kinetics400,ucf101,hmdb51,vidsitu,gebd,ava-kinetics} VIDEOS --")
    assert re.search(r"--overlap OVERLAP\s.*?\(default:\s+0\.0\)", text, re.DOTALL)


@pytest.mark.parametrize(
    "typed",
    ["a.mp4 b.mp4 --weights w --out f", "--weights w --json --out=f a.mp4 b.mp4", "--weights w a.mp4 b.mp4 --out f"],
)
def test_arguments_may_stand_before_between_and_after_options(typed):
    given = parse_command(["embed", *typed.split()])
    assert (given.videos, given.weights, given.json) == (["a.mp4", "b.mp4"], "w", "--json" in typed)


@pytest.mark.parametrize("value", ["True", "true", "FALSE"])
def test_a_flag_may_have_a_value_in_any_case(value):
    assert parse_command(["doctor", "--json", value]).json == (value.lower() == "true")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--overlap", "x"], "--overlap: 'x' does not fit; it takes a number\n"),
        (["--head", "both"], "--head: 'both' does not fit; it takes 'none', 'fine', 'persistent'\n"),
        (["--fps", "fast"], "--fps: 'fast' does not fit; it takes a number or null\n"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["embed", "a.mp4", "--weights", "w", "--out", "f.npz", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"timegrain embed: error: {message}See `timegrain embed --help`.\n"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("finetune", "--test.num_clips"), ("finetune", "--test.batch_size"), ("finetune", "--data.num_frames"),
        ("probe linear", "--test.crop_size"), ("probe attentive", "--classifier.num_heads"),
        ("boundaries train", "--evaluation.every"), ("boundaries train", "--evaluation.batch_size"),
        ("localize", "--data.short_side"), ("finetune vidsitu", "--data.batch_size"),
    ],
)  # fmt: skip
def test_a_size_that_means_nothing_is_refused_before_a_long_training(command, option, capsys):
    needed = [] if command.startswith("boundaries") else ["--data.manifest=m.parquet", "--weights=w"]
    assert main([*command.split(), *needed, f"{option}=0"]) == 2
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1, 2\n b: {", "is not YAML: "),
        (b"\x80\x81", "is not YAML: "),
        (b"- 1\n- 2\n", "holds no options"),
        (None, "--config: File does not exist: "),
    ],
)
@pytest.mark.parametrize(
    "words", [["plan", "FILE"], ["embed", "--config=FILE"], ["embed", "--config", "FILE"]], ids=" ".join
)
def test_a_configuration_that_is_none_is_one_message_with_its_name(words, content, message, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_bytes(content)
    try:
        code = main([word.replace("FILE", str(file)) for word in words])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert message in first
    assert "c.yaml" in first
    assert rest in ([], [f"See `timegrain {words[0]} --help`."])


@pytest.mark.parametrize(
    ("command", "file", "hint"),
    [
        ("plan", "probe/ucf101_teg_fg.yaml", "is a configuration of `timegrain probe linear`"),
        ("bench VIDEOS --config", "boundaries/gebd_pc.yaml", "is a configuration of `timegrain boundaries train`"),
        ("finetune --config", "pretrain/k400_teg_fg_200ep.yaml", "is a configuration of `timegrain pretrain`"),
    ],
)
def test_a_configuration_of_another_command_is_named(command, file, hint, capsys):
    path = Path(__file__).parents[2] / "configs" / file
    with pytest.raises(SystemExit):
        main([*command.split(), str(path)])
    assert f"{path} {hint}" in capsys.readouterr().err
