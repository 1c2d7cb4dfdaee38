"""What a command is, and how it gets its configuration from the words behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from unibert.errors import UserError

if TYPE_CHECKING:
    from unibert.options import Given
    from unibert.training.config import RunConfig

RUN_CONFIG = "unibert.training.config:RunConfig"


@dataclass(frozen=True)
class Command:
    """One row of the table of commands."""

    name: str
    arguments: str
    """As people type them, without the name."""
    summary: str
    run: Callable[[Call], None]
    options: str | None = None
    """``module:class`` of its own configuration, imported when it is needed."""
    positional: str | None = None
    """The field of that class that words without an option belong to."""
    run_file: Literal["no", "required", "optional", "option"] = "no"
    """Whether it takes a run file and its keys; "option" is one named with --run."""
    about: str = ""
    """Sentences for its help, beyond the summary."""

    @property
    def usage(self) -> str:
        """The whole line as people type it."""
        return f"unibert {self.name} {self.arguments}".rstrip()

    @property
    def label(self) -> str:
        """What stands for a word without an option in :attr:`arguments`."""
        return self.arguments.partition(" ")[0].strip("[]")

    def own_class(self) -> type | None:
        """Its own configuration."""
        return None if self.options is None else imported(self.options)

    def config_classes(self) -> list[type]:
        """All whose fields are its options: its own, and that of a run."""
        return [
            *([] if (own := self.own_class()) is None else [own]),
            *([] if self.run_file == "no" else [imported(RUN_CONFIG)]),
        ]


def imported(name: str) -> Any:
    """What ``module:name`` means."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


class Call:
    """A command and the words behind it, which are looked at when the command asks what they mean."""

    def __init__(self, command: Command, words: list[str]) -> None:
        self.command = command
        self.words = words

    def options(self) -> Any:
        """The command's own configuration.

        Raises:
            UserError: for a mistake in the words.
        """
        from unibert.configuration import parse

        command, own = self.command, self.command.own_class()
        assert own is not None
        words = [*self._positional_words(own), *self._option_words(own)]
        return parse(own, words, prog=f"unibert {command.name}")

    def run_config(self, name: str | None = None, *overrides: str) -> RunConfig:
        """The run that the words describe.

        Args:
            name: the run file, where it is no word of its own.
            overrides: that go before those of the words.

        Raises:
            UserError: for a mistake in the words or in the run file.
        """
        from unibert.configuration import parse
        from unibert.run_files import run_file

        command, bare = self.command, self._given.bare
        if name is None and len(bare) > 1:
            raise UserError(f"{command.name} takes one run file, got {' '.join(bare)}; overrides are --key value")
        if name is None and bare:
            name = bare[0]
        if name is None and command.run_file == "required" and not self.option_keys & {"config", "run_dir"}:
            raise UserError(f"{command.name} needs a run file or a preset; usage: {command.usage}")
        words = [] if name is None else [f"--config={run_file(name)}"]
        config: RunConfig = parse(
            imported(RUN_CONFIG),
            [*words, *overrides, *self._option_words(imported(RUN_CONFIG))],
            prog=f"unibert {'pretrain' if command.options is None else command.name}",
        )
        return config

    @property
    def option_keys(self) -> set[str]:
        """The dotted keys that the words give."""
        return {key for key, _ in self._given.options}

    @property
    def run_keys(self) -> list[str]:
        """Those of them that belong to a run file."""
        return [key for key, _ in self._given.options if self._owner(key) is imported(RUN_CONFIG)]

    @cached_property
    def _given(self) -> Given:
        from unibert.options import read_words

        return read_words(self.words, *self.command.config_classes())

    def _positional_words(self, own: type) -> list[str]:
        from unibert.options import field_types, is_list, missing_keys

        command, bare = self.command, list(self._given.bare)
        if command.run_file in ("required", "optional"):
            return []
        key = command.positional
        if key is None and bare:
            raise UserError(f"{bare[0]}: {command.name} takes options only; usage: {command.usage}")
        if key is None:
            return []
        if not bare and key in missing_keys(own, sorted(self.option_keys)) and "config" not in self.option_keys:
            raise UserError(f"{command.name} needs {command.label}; usage: {command.usage}")
        if bare and is_list(field_types(own)[key]):
            return [f"--{key}={json.dumps(bare, ensure_ascii=False)}"]
        if len(bare) > 1:
            raise UserError(f"{command.name} takes one {command.label}, got {' '.join(bare)}; usage: {command.usage}")
        return [f"--{key}={bare[0]}"] if bare else []

    def _option_words(self, owner: type) -> list[str]:
        from unibert.options import as_word
        from unibert.run_files import run_file

        words = []
        for key, value in self._given.options:
            if self._owner(key) is owner:
                is_run_file = key == "config" and self.command.run_file != "no"
                words.append(as_word(key, str(run_file(value)) if is_run_file else value))
        return words

    def _owner(self, key: str) -> type:
        """The class that an option belongs to: the first that has the key; what is special goes to the last."""
        from unibert.options import SPECIAL_KEYS, field_types

        classes = self.command.config_classes()
        first = key.partition(".")[0].rstrip("+")
        return next((one for one in classes if first in field_types(one) and key not in SPECIAL_KEYS), classes[-1])
