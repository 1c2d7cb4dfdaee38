"""The output of ``unibert --help`` and ``unibert COMMAND --help``, from the table of commands and docstrings."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from unibert.command import RUN_CONFIG, Command, import_object
from unibert.options import Option, Section, is_bool, metavar, sections
from unibert.run_files import preset_names

RUN_KEYS_COMMAND = "pretrain"
"""The command whose help lists the keys of a run file."""
MAX_WIDTH = 100
NAME_WIDTH = 40
MAX_OPTIONS_WITHOUT_FILE = 3
"""Maximum number of options for which the help does not mention a file with options."""


def overview(commands: Sequence[Command]) -> str:
    """List all commands, one per line."""
    rows = [f"  {f'{command.name} {command.arguments}':<{NAME_WIDTH}}{command.summary}" for command in commands]
    return "\n".join(
        [
            "usage: unibert COMMAND …",
            "",
            *rows,
            "",
            "`unibert help COMMAND` describes a command and its options; `unibert --version` prints the version.",
        ]
    )


def command_help(command: Command) -> str:
    """Return usage and description of a command, and its options with their descriptions."""
    width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 0)).columns)
    return "\n".join(_lines(command, width)).rstrip()


def _lines(command: Command, width: int) -> Iterator[str]:
    yield f"usage: {command.usage}"
    yield ""
    summary = f"{command.summary[0].upper()}{command.summary[1:]}."
    yield from _wrapped(f"{summary} {command.about}".strip(), width)
    yield ""
    if command.run_file in ("required", "optional"):
        yield "  RUN.yaml"
        yield from _indented(f"Run file, or a preset: {', '.join(preset_names())}.", width)
        yield ""
    own = command.options_class()
    listed = [] if own is None else sections(own)
    if command.name == RUN_KEYS_COMMAND:
        listed += sections(import_object(RUN_CONFIG))
    for section in listed:
        yield from _section(section, command, width)
    if command.run_file != "no" and command.name != RUN_KEYS_COMMAND:
        text = "The keys of a run file are options too, as in --training.micro_batch_size 16."
        yield from _wrapped(f"{text} `unibert help {RUN_KEYS_COMMAND}` lists them.", width)
        yield ""
    num_options = sum(len(section.options) for section in listed)
    if command.run_file != "no" or num_options > MAX_OPTIONS_WITHOUT_FILE:
        yield "  --config FILE.yaml"
        yield from _indented("Read options from a YAML file. Options on the command line override it.", width)
        yield "  --print_config"
        yield from _indented("Print the resulting configuration as YAML and exit.", width)


def _section(section: Section, command: Command, width: int) -> Iterator[str]:
    if section.key:
        note = " Off (null) unless the run file or an option sets one of its keys." if section.optional else ""
        yield from _wrapped(f"{section.key}: {section.description}{note}", width)
        yield ""
    options = sorted(section.options, key=lambda option: option.key != command.positional)
    for option in options:
        yield f"  {command.label if option.key == command.positional else _option_line(option)}"
        yield from _indented(_description(option, positional=option.key == command.positional), width)
    if options:
        yield ""


def _option_line(option: Option) -> str:
    values = metavar(option.annotation)
    return f"--{option.key} [{values}]" if is_bool(option.annotation) else f"--{option.key} {values}"


def _description(option: Option, *, positional: bool) -> str:
    text = option.description
    if option.required:
        return text if positional else f"{text} Required."
    default = option.default
    if default is None or default == [] or default == {} or "Default:" in text:
        return text
    return f"{text} Default: {_format_value(default)}."


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(_format_value, value))
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value)


def _indented(text: str, width: int) -> list[str]:
    return _wrapped(text, width, indent=6)


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    blank = " " * indent
    return textwrap.wrap(
        text, width, initial_indent=blank, subsequent_indent=blank, break_long_words=False, break_on_hyphens=False
    )
