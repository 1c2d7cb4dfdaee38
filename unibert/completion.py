"""``unibert completion``: a script for the shell, generated once, so that completion does not start Python."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, cast

from unibert.command import Command
from unibert.errors import UserError
from unibert.options import Option, choices, is_list, is_text, sections
from unibert.run_files import preset_names

_RUN_FILES = dict.fromkeys(("bash", "zsh"), "_unibert_run_files")
_PREAMBLE = {
    "bash": '_unibert_run_files() {{ compgen -W "{presets}" -- "$1"; compgen -f -- "$1"; }}\n',
    "zsh": "_unibert_run_files() {{ compadd {presets}; _files -g '*.yaml'; }}\n",
}


def completion_script(shell: str, commands: Sequence[Command]) -> str:
    """Return the script with which ``shell``, bash or zsh, completes commands, options, their values and files.

    Raises:
        UserError: if the package shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs the package shtab; install it with `pip install shtab`") from error
    preamble = {name: text.format(presets=" ".join(preset_names())) for name, text in _PREAMBLE.items()}
    # shtab's annotation allows only one preamble for all shells.
    script: str = shtab.complete(_parser(commands, shtab.FILE), shell, preamble=cast(Any, preamble))
    return script


def _parser(commands: Sequence[Command], files: Any) -> argparse.ArgumentParser:
    """Build an argparse parser of the commands, from which shtab generates its scripts."""
    root = argparse.ArgumentParser(prog="unibert")
    root.add_argument("--version", action="store_true", help="print the version")
    subcommands = root.add_subparsers()
    parsers: dict[str, argparse.ArgumentParser] = {}
    groups: dict[str, Any] = {}
    for command in commands:
        first, _, second = command.name.partition(" ")
        if second and first not in groups:
            # A command may have subcommands beside its own options.
            group = parsers[first] if first in parsers else subcommands.add_parser(first, help=f"{first} …")
            groups[first] = group.add_subparsers()
        parent = groups[first] if second else subcommands
        parser = parent.add_parser(second or first, help=command.summary, description=command.summary)
        parsers[command.name] = parser
        if command.run_file in ("required", "optional"):
            _set_completer(parser.add_argument("run", nargs="?"), _RUN_FILES)
        for option in _options(command):
            _add_option(parser, option, command, files)
        _set_completer(parser.add_argument("--config", help="YAML file with options"), files)
        parser.add_argument("--print_config", action="store_true", help="print the resulting configuration")
    help_parser = subcommands.add_parser("help", help="describe a command and its options")
    words = sorted({word for command in commands for word in command.name.split()})
    help_parser.add_argument("command", nargs="*", choices=words)
    return root


def _options(command: Command) -> list[Option]:
    return [option for cls in command.config_classes() for section in sections(cls) for option in section.options]


def _add_option(parser: argparse.ArgumentParser, option: Option, command: Command, files: Any) -> None:
    values = choices(option.annotation) or None
    # The full description is too long for a line beside an option.
    text = option.description.partition(". ")[0].replace("`", "").replace("%", "%%")
    if option.key == command.positional:
        action = parser.add_argument(
            option.key, nargs="*" if is_list(option.annotation) else "?", choices=values, help=text
        )
    else:
        action = parser.add_argument(f"--{option.key}", choices=values, help=text)
    if values is None and is_text(option.annotation):
        _set_completer(action, _RUN_FILES if command.run_file == "option" and option.key == "run" else files)


def _set_completer(action: Any, completer: Any) -> None:
    """Set the attribute from which shtab takes the completion of an argument."""
    action.complete = completer
