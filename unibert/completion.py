"""``unibert completion``: a script for the shell, made once, so that pressing tab starts no Python."""

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
    """What ``shell``, bash or zsh, has to read to complete commands, options, their values and files.

    Raises:
        UserError: without the package shtab.
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs the package shtab; install it with `pip install shtab`") from error
    preamble = {name: text.format(presets=" ".join(preset_names())) for name, text in _PREAMBLE.items()}
    # Its annotation knows of one preamble for all shells only.
    script: str = shtab.complete(_tree(commands, shtab.FILE), shell, preamble=cast(Any, preamble))
    return script


def _tree(commands: Sequence[Command], files: Any) -> argparse.ArgumentParser:
    """The commands as argparse has them, from which shtab makes its scripts."""
    root = argparse.ArgumentParser(prog="unibert")
    root.add_argument("--version", action="store_true", help="print the version")
    subcommands = root.add_subparsers()
    groups: dict[str, Any] = {}
    for command in commands:
        first, _, second = command.name.partition(" ")
        if second and first not in groups:
            groups[first] = subcommands.add_parser(first, help=f"{first} …").add_subparsers()
        parent = groups[first] if second else subcommands
        parser = parent.add_parser(second or first, help=command.summary, description=command.summary)
        if command.run_file in ("required", "optional"):
            _complete(parser.add_argument("run", nargs="?"), _RUN_FILES)
        for option in _options(command):
            _add(parser, option, command, files)
        _complete(parser.add_argument("--config", help="YAML file with options"), files)
        parser.add_argument("--print_config", action="store_true", help="print the resulting configuration")
    named = subcommands.add_parser("help", help="describe a command and its options")
    named.add_argument("command", nargs="*", choices=sorted({word for one in commands for word in one.name.split()}))
    return root


def _options(command: Command) -> list[Option]:
    return [option for one in command.config_classes() for section in sections(one) for option in section.options]


def _add(parser: argparse.ArgumentParser, option: Option, command: Command, files: Any) -> None:
    known = choices(option.annotation) or None
    # Sentences of the help are too long for a line beside an option.
    about = option.description.partition(". ")[0].replace("`", "").replace("%", "%%")
    if option.key == command.positional:
        action = parser.add_argument(
            option.key, nargs="*" if is_list(option.annotation) else "?", choices=known, help=about
        )
    else:
        action = parser.add_argument(f"--{option.key}", choices=known, help=about)
    if known is None and is_text(option.annotation):
        _complete(action, _RUN_FILES if command.run_file == "option" and option.key == "run" else files)


def _complete(action: Any, completer: Any) -> None:
    """How shtab is told what completes an argument."""
    action.complete = completer
