"""From a typed function to a command's options: one-message errors, and help that teaches.

jsonargparse makes options of the signature; what the docstring says before its ``Args:`` (with its examples) becomes
the text above them.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, auto_cli

_CONFIG_HELP = "A YAML file with any of these options, as --print_config writes it; what is typed beside it wins."
_SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:")


def run(command: Callable[..., Any], name: str, arguments: Sequence[str]) -> Any:
    """Call a command with what was typed.

    Args:
        command: A typed function with a Google-style docstring.
        name: What its user types, such as ``manifest scan``.
        arguments: What follows the name.

    Returns:
        What the command returns.

    Raises:
        SystemExit: After ``--help`` (0) and after options that do not fit (2, one message on standard error).
        ValueError: A configuration file is not YAML, or holds no options.
    """
    parameters = list(inspect.signature(command).parameters.values())
    words = prepare(arguments, parameters, takes_config(command))
    files = _check_configs(words)

    class Parser(_Parser):
        command_name = name
        config_files = files
        required_options = tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)
        config_first = takes_config(command)

    return auto_cli(
        command,
        args=words,
        config_help=_CONFIG_HELP,
        prog=f"timegrain {name}",
        description=described(command),
        parser_class=Parser,
        formatter_class=_Formatter,
    )


def _check_configs(words: Sequence[str]) -> tuple[Path, ...]:
    """The configuration files; one that is none is refused in words that name it, which the parser's do not."""
    files = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        option, _, value = word.partition("=")
        file = Path(value or following)
        if option != "--config" or not file.is_file():
            continue
        try:
            values = yaml.safe_load(file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict | None):
            raise ValueError(f"{file} holds no options; `--print_config` writes a file that does")
        files.append(file)
    return tuple(files)


def _written_for(file: Path) -> str:
    """The command that a configuration's comments show, as those of shipped ones and of runs do; empty without one."""
    shown = re.search(r"^#.*?\btimegrain ([a-z]+(?: [a-z]+)?) (?:--config|\S+\.yaml)", file.read_text(), re.MULTILINE)
    return shown[1] if shown else ""


def takes_config(command: Callable[..., Any]) -> bool:
    """Whether a command's first word may be a configuration file, as in `timegrain plan CONFIG`."""
    return bool(getattr(command, "config_first", False))


def prepare(arguments: Sequence[str], parameters: Sequence[inspect.Parameter], config_first: bool = False) -> list[str]:
    """What shells are used to: `--num-videos` for `--num_videos`, `--json` alone, `a b c` as a list.

    Args:
        arguments: What was typed after the command.
        parameters: Of the command's function.
        config_first: A first word that is no option is the value of `--config`.
    """
    if config_first and arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    flags = {f"--{parameter.name}" for parameter in parameters if parameter.annotation in (bool, "bool")}
    prepared = [re.sub(r"^--[\w.-]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in arguments]
    for position in reversed(range(len(prepared))):
        following = prepared[position + 1 : position + 2]
        if prepared[position] in flags and not any(word.lower() in ("true", "false") for word in following):
            prepared[position] += "=true"
    lists = [parameter for parameter in parameters if str(parameter.annotation).startswith("list[")]
    if lists and lists[0] is parameters[0]:
        prepared = _as_list(prepared, _first_argument(prepared, {f"--{parameter.name}" for parameter in lists}))
    for parameter in lists:
        if f"--{parameter.name}" in prepared:
            prepared = _as_list(prepared, prepared.index(f"--{parameter.name}") + 1)
    return prepared


def _first_argument(words: Sequence[str], lists: set[str]) -> int:
    """Where the first word stands that is neither an option nor its value; the end where there is none."""
    place = 0
    while place < len(words) and words[place].startswith("-"):
        option, place = words[place], place + 1
        if option in lists:
            place = next((after for after in range(place, len(words)) if words[after].startswith("-")), len(words))
        elif "=" not in option and option not in ("-h", "--help", "--print_config"):
            place += 1
    return place


def _as_list(words: list[str], start: int) -> list[str]:
    """Words from a position up to the next option as one list; a list in JSON stays what it is."""
    stop = next((place for place in range(start, len(words)) if words[place].startswith("-")), len(words))
    given = words[start:stop]
    if not given or (len(given) == 1 and given[0].startswith("[")):
        return words
    return [*words[:start], json.dumps(given), *words[stop:]]


def described(command: Callable[..., Any]) -> str:
    """What a docstring says before its sections; indented blocks (the examples) keep their lines."""
    lines = inspect.cleandoc(command.__doc__ or "").splitlines()
    end = next((number for number, line in enumerate(lines) if line in _SECTIONS), len(lines))
    return "\n".join(lines[:end]).strip().replace("``", "`").replace("::\n", ":\n")


class _Formatter(DefaultHelpFormatter):
    """Paragraphs refilled, examples kept; of an option only what helps to set it."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for block in re.split(r"\n\s*\n", text):
            for indented, group in itertools.groupby(block.splitlines(), key=lambda line: line.startswith("  ")):
                part = list(group)
                lines += part if indented else textwrap.wrap(" ".join(part), width)
            lines.append("")
        return "\n".join(lines[:-1])

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.metavar == "{true,false}" and action.default is False:
            return ""  # a flag
        return super()._format_args(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").replace("``", "`")
        if getattr(action, "_jsonargparse_preexpanded_help", False) or "%(default)" in text:
            return text
        if action.required:
            return f"{text} (required)" if action.option_strings else text
        if any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS)) or action.default == {}:
            return text
        return f"{text} (default: %(default)s)"


class _Parser(ArgumentParser):
    """A parser whose complaints are one message, and whose usage line fits on a line."""

    command_name = ""
    config_files: tuple[Path, ...] = ()
    required_options: tuple[str, ...] = ()
    config_first = False

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The command's help page."""
        positionals, options = ["[CONFIG]"] if self.config_first else [], []
        for action in self._actions:
            if action.help == "Path to a configuration file.":  # a file for one group of options: one way too many
                action.help = argparse.SUPPRESS
            elif "--print_config" in action.option_strings:
                action.help, action.metavar = "Print every setting as YAML and stop.", ""
            elif action.option_strings and action.dest in self.required_options:
                options.append(f"{action.option_strings[0]} {action.metavar or action.dest.upper()}")
            elif not action.option_strings:
                several = str(action.metavar).lstrip("'").startswith("[")
                if not str(action.metavar).startswith("{"):
                    action.metavar = action.dest.upper()
                positionals.append(f"{action.metavar} [...]" if several else str(action.metavar))
        self.usage = " ".join([f"timegrain {self.command_name}", *positionals, *options, "[OPTIONS]"])
        return super().format_help() if formatter is None else super().format_help(formatter)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, offer the nearest option, stop with exit code 2."""
        message = _plain(message)
        known = [option.lstrip("-") for option in self._option_string_actions]
        words = re.findall(r"unrecognized arguments: -*([\w.]+)", message)
        words += [f"{group}.{key}" for group, key in re.findall(r"Group '(.+)' does not .* option '(.+)'", message)]
        close = [match for word in words for match in difflib.get_close_matches(word, known, n=1)]
        hint = f" Did you mean --{close[0]}?" if close else ""
        name = self.command_name
        own = {"", name, *(["pretrain"] if name in ("plan", "bench") else [])}  # those take what it takes
        others = [(file, other) for file in self.config_files if (other := _written_for(file)) not in own]
        if others and "accept" in message:
            hint = f". {others[0][0]} is a configuration of `timegrain {others[0][1]}`"
        print(f"timegrain {name}: error: {message.strip()}{hint}\nSee `timegrain {name} --help`.", file=sys.stderr)
        raise SystemExit(2)


def _plain(message: str) -> str:
    """Jsonargparse's report of a value that does not fit, in one line: the option, the value, what fits."""
    if "Does not validate against any" in message:  # of several reasons the one that is not about a type
        reasons = [reason for reason in re.findall(r"^ +- (.+)$", message, re.MULTILINE) if "Expected a" not in reason]
        if reasons:
            return str(reasons[0])
    key = re.match(r'Parser key "([\w.]+)":', message)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    fitting = re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    if not key or not value or not fitting:
        return re.sub(r'^Parser key "([\w.]+)":', r"--\1:", message)
    words = [re.sub(r"^(?:typing\.)?Literal\[(.*)\]$|^<class '(.*)'>$", r"\1\2", kind) for kind in fitting]
    names = {"NoneType": "null", "int": "a whole number", "float": "a number", "bool": "true or false"}
    choices = " or ".join(dict.fromkeys(names.get(word, word) for word in words))
    return f"--{key[1]}: {value[1]!r} does not fit; it takes {choices}"
