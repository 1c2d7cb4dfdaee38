"""A command, and how its configuration follows from the words after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from unibert.errors import UserError

if TYPE_CHECKING:
    from unibert.options import ParsedWords
    from unibert.training.config import RunConfig

RUN_CONFIG = "unibert.training.config:RunConfig"


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    name: str
    arguments: str
    """The arguments in the usage line."""
    summary: str
    run: Callable[[Call], None]
    options: str | None = None
    """``module:class`` of the command's own configuration, imported on demand."""
    positional: str | None = None
    """The field of that class that takes the positional words."""
    run_file: Literal["no", "required", "optional", "option"] = "no"
    """Whether the command takes a run file and its keys. With "option", the run file is given with --run."""
    about: str = ""
    """Further sentences for the command's help."""

    @property
    def usage(self) -> str:
        """The usage line."""
        return f"unibert {self.name} {self.arguments}".rstrip()

    @property
    def label(self) -> str:
        """Placeholder of the positional words in :attr:`arguments`."""
        return self.arguments.partition(" ")[0].strip("[]")

    def options_class(self) -> type | None:
        """Return the class of the command's own configuration."""
        return None if self.options is None else import_object(self.options)

    def config_classes(self) -> list[type]:
        """Return the classes whose fields are options of the command: its own, and that of a run."""
        return [
            *([] if (own := self.options_class()) is None else [own]),
            *([] if self.run_file == "no" else [import_object(RUN_CONFIG)]),
        ]


def import_object(name: str) -> Any:
    """Import the object with the name ``module:name``."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


class Call:
    """A command and the words after it, which are parsed on demand."""

    def __init__(self, command: Command, words: list[str]) -> None:
        self.command = command
        self.words = words

    def options(self) -> Any:
        """Return the command's own configuration.

        Raises:
            UserError: for a mistake in the words.
        """
        from unibert.configuration import parse

        command, own = self.command, self.command.options_class()
        assert own is not None
        words = [*self._positional_words(own), *self._option_words(own)]
        return parse(own, words, prog=f"unibert {command.name}")

    def run_config(self, name: str | None = None, *overrides: str) -> RunConfig:
        """Return the configuration of the run that the words describe.

        Args:
            name: the run file, if it is not a positional word.
            overrides: options that come before those among the words.

        Raises:
            UserError: for a mistake in the words or in the run file.
        """
        from unibert.configuration import parse
        from unibert.run_files import run_file

        command, positionals = self.command, self._parsed.positionals
        if name is None and len(positionals) > 1:
            got = " ".join(positionals)
            raise UserError(f"{command.name} takes one run file, got {got}; overrides are written --key value")
        if name is None and positionals:
            name = positionals[0]
        if name is None and command.run_file == "required" and not self.option_keys & {"config", "run_dir"}:
            raise UserError(f"{command.name} needs a run file or a preset; usage: {command.usage}")
        words = [] if name is None else [f"--config={run_file(name)}"]
        config: RunConfig = parse(
            import_object(RUN_CONFIG),
            [*words, *overrides, *self._option_words(import_object(RUN_CONFIG))],
            prog=f"unibert {'pretrain' if command.options is None else command.name}",
        )
        return config

    @property
    def option_keys(self) -> set[str]:
        """The dotted keys of the options among the words."""
        return {key for key, _ in self._parsed.options}

    @property
    def run_keys(self) -> list[str]:
        """The dotted keys among the words that belong to a run file."""
        return [key for key, _ in self._parsed.options if self._owner(key) is import_object(RUN_CONFIG)]

    @cached_property
    def _parsed(self) -> ParsedWords:
        from unibert.options import parse_words

        return parse_words(self.words, *self.command.config_classes())

    def _positional_words(self, own: type) -> list[str]:
        from unibert.options import field_types, is_list, missing_keys

        command, positionals = self.command, list(self._parsed.positionals)
        if command.run_file in ("required", "optional"):
            return []
        key = command.positional
        if key is None and positionals:
            raise UserError(f"{positionals[0]}: {command.name} takes options only; usage: {command.usage}")
        if key is None:
            return []
        if not positionals and key in missing_keys(own, sorted(self.option_keys)) and "config" not in self.option_keys:
            raise UserError(f"{command.name} needs {command.label}; usage: {command.usage}")
        if positionals and is_list(field_types(own)[key]):
            return [f"--{key}={json.dumps(positionals, ensure_ascii=False)}"]
        if len(positionals) > 1:
            got = " ".join(positionals)
            raise UserError(f"{command.name} takes one {command.label}, got {got}; usage: {command.usage}")
        return [f"--{key}={positionals[0]}"] if positionals else []

    def _option_words(self, owner: type) -> list[str]:
        from unibert.options import option_word
        from unibert.run_files import run_file

        words = []
        for key, value in self._parsed.options:
            if self._owner(key) is owner:
                is_run_file = key == "config" and self.command.run_file != "no"
                words.append(option_word(key, str(run_file(value)) if is_run_file else value))
        return words

    def _owner(self, key: str) -> type:
        """Return the class that an option belongs to: the first that has the key; for special keys the last class."""
        from unibert.options import SPECIAL_KEYS, field_types

        classes = self.command.config_classes()
        first = key.partition(".")[0].rstrip("+")
        return next((one for one in classes if first in field_types(one) and key not in SPECIAL_KEYS), classes[-1])
