"""The options that a configuration dataclass gives a command: their names, types and descriptions, and how they are
written on a command line. Nothing here imports more than Python's own library, so that help comes at once.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unibert.errors import UserError

SPECIAL_KEYS = ("config", "print_config")
"""Options of every command that has a configuration, besides its fields."""


@dataclass(frozen=True)
class Option:
    """One field of a configuration, however deep it lies."""

    key: str
    """Dotted."""
    annotation: Any
    description: str
    required: bool
    default: Any


@dataclass(frozen=True)
class Section:
    """The options of one dataclass, those of its own sections not among them."""

    key: str
    """Dotted; empty for the outermost."""
    description: str
    optional: bool
    """Whether it may be null, and is unless one of its keys is given."""
    options: tuple[Option, ...]


def sections(config_class: type, prefix: str = "", description: str = "", optional: bool = False) -> list[Section]:
    """``config_class`` and all that is nested in it, outermost first."""
    descriptions = field_descriptions(config_class)
    annotations = field_types(config_class)
    own, nested = [], []
    for field in dataclasses.fields(config_class):
        key, annotation = f"{prefix}{field.name}", annotations[field.name]
        if (section := nested_dataclass(annotation)) is not None:
            nested += sections(section, f"{key}.", descriptions[field.name], types.NoneType in _arms(annotation))
            continue
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        own.append(Option(key, annotation, descriptions[field.name], _is_required(field), default))
    return [Section(prefix.removesuffix("."), description, optional, tuple(own)), *nested]


def field_descriptions(config_class: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass, as plain text of one line; empty where there is none."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0]).body
    described = {field.name: "" for field in dataclasses.fields(config_class)}
    for statement, after in itertools.pairwise(body):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                described[name] = " ".join(text.replace("``", "`").split())
    return described


def field_types(config_class: type) -> dict[str, Any]:
    """Field names of a dataclass with their resolved types."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def nested_dataclass(annotation: Any) -> type | None:
    """The dataclass in ``annotation`` (itself, or one arm of an Optional), if any."""
    return next((arm for arm in _arms(annotation) if isinstance(arm, type) and dataclasses.is_dataclass(arm)), None)


def is_bool(annotation: Any) -> bool:
    """Whether it is a switch."""
    return bool in _arms(annotation)


def is_text(annotation: Any) -> bool:
    """Whether any text will do, such as the name of a file."""
    return any(arm in (str, Path, list[str], list[Path]) for arm in _arms(annotation))


def is_list(annotation: Any) -> bool:
    """Whether several values may be given."""
    return any(typing.get_origin(arm) is list for arm in _arms(annotation))


def missing_keys(config_class: type, given: Sequence[str], prefix: str = "") -> Iterator[str]:
    """The dotted keys without a default that are not among ``given``, also of the optional sections of which one is."""
    annotations = field_types(config_class)
    for field in dataclasses.fields(config_class):
        key = f"{prefix}{field.name}"
        here = [name for name in given if name == key or name.startswith(f"{key}.")]
        section = nested_dataclass(annotations[field.name])
        if section is not None and (_is_required(field) or any(name != key for name in here)):
            yield from missing_keys(section, given, f"{key}.")
        elif _is_required(field) and not here:
            yield key


# ---- what is written on a command line ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """The words of a command line, told apart."""

    options: tuple[tuple[str, str], ...]
    """Dotted keys, without the dashes, and their values as text."""
    bare: tuple[str, ...]
    """The words that belong to no option."""


def read_words(words: Sequence[str], *config_classes: type) -> Given:
    """Tell options, as ``--key value`` or ``--key=value``, from the other words, wherever they stand.

    A bool needs no value, and a list may be written without brackets.

    Raises:
        UserError: for a key that none of ``config_classes`` has, with the nearest that there is, or one without value.
    """
    options, bare = [], []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "-":
            bare.append(word)
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        annotation = annotation_of(key, config_classes, shown=word.partition("=")[0])
        if key == "print_config":
            pass
        elif not equals and is_bool(annotation):
            value = left.pop(0) if left and left[0].lower() in ("true", "false", "null") else "true"
        elif not equals:
            if not left or left[0].startswith("--"):
                wanted = "a file" if key == "config" else allowed(annotation)
                raise UserError(f"{word}: needs a value: {wanted}")
            value = left.pop(0)
        options.append((key, _with_brackets(annotation, value)))
    return Given(tuple(options), tuple(bare))


def as_word(key: str, value: str) -> str:
    """An option as one word."""
    return f"--{key}" if key == "print_config" and not value else f"--{key}={value}"


def annotation_of(key: str, config_classes: Sequence[type], *, shown: str) -> Any:
    """The type of a dotted key; ``shown`` is how it was written.

    Raises:
        UserError: if no class has it, with the nearest key that one has.
    """
    if not shown.startswith("--"):
        raise UserError(f"{shown}: options are written --key value")
    if key in SPECIAL_KEYS:
        return str
    first = key.partition(".")[0].rstrip("+")
    level: Any = next((one for one in config_classes if first in field_types(one)), None)
    if level is None:
        known = [name for one in config_classes for name in field_types(one)]
        raise UserError(f"{shown}: {unknown_key(first if '.' not in key else key, first, known)}")
    prefix = ""
    for part in key.split("."):
        if not dataclasses.is_dataclass(level):
            # What lies in a dict is the dict's affair.
            return _value_type(level)
        fields = field_types(typing.cast(type, level))
        if part.rstrip("+") not in fields:
            raise UserError(f"{shown}: {unknown_key(prefix + part, part, list(fields), prefix)}")
        annotation = fields[part.rstrip("+")]
        level = nested_dataclass(annotation) or annotation
        prefix += f"{part}."
    return annotation


def unknown_key(dotted: str, key: str, known: Sequence[str], prefix: str = "") -> str:
    """A sentence about ``dotted`` with the nearest key, or all that there are."""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    where = f"{prefix[:-1]} has" if prefix else "there are"
    hint = f"did you mean {prefix + nearest[0]!r}?" if nearest else f"{where} the keys {', '.join(known)}"
    return f"unknown key {dotted!r}; {hint}"


def _with_brackets(annotation: Any, value: str) -> str:
    """``en,de`` as ``[en, de]`` where a list or tuple of plain values is wanted."""
    arms = [arm for arm in _arms(annotation) if _is_plain_list(arm)]
    if not arms or value.startswith(("[", "-\n", "- ")) or (value == "null" and types.NoneType in _arms(annotation)):
        return value
    return f"[{', '.join(part.strip() for part in value.split(',') if part.strip())}]"


# ---- types, for people -------------------------------------------------------------------------------------------

_PLAIN: dict[Any, tuple[str, str, str]] = {
    bool: ("true|false", "true or false", "true or false"),
    int: ("N", "a whole number", "whole numbers"),
    float: ("X", "a number", "numbers"),
    str: ("TEXT", "text", "names"),
    Path: ("PATH", "a path", "paths"),
}
"""Type → in a list of options, in a sentence, in a sentence about several."""
_EXAMPLES = {int: "1,2", float: "0.5,1", str: "a,b", Path: "a,b"}


def metavar(annotation: Any) -> str:
    """What stands for a value in a list of options: ``N``, ``auto|cpu|cuda``, ``TEXT,…``."""
    return " or ".join(_metavar(arm) for arm in _arms(annotation) if arm is not types.NoneType)


def _metavar(arm: Any) -> str:
    arguments = typing.get_args(arm)
    if arm in _PLAIN:
        return _PLAIN[arm][0]
    if _is_choice(arm):
        return "|".join(map(str, arguments))
    match typing.get_origin(arm):
        case origin if origin is list and not _is_plain_list(arm):
            return f"[[progress, {metavar(typing.get_args(arguments[0])[1])}], …]"
        case origin if origin is list:
            return f"{metavar(arguments[0])},…"
        case origin if origin is tuple:
            return ",".join(map(metavar, arguments))
        case origin if origin is dict:
            return "{name: value, …}"
    return "VALUE"


def allowed(annotation: Any) -> str:
    """What a value may be, as it stands in a sentence: ``mean, cls or token``."""
    arms = _arms(annotation)
    listed = [choice for arm in arms for choice in (map(str, typing.get_args(arm)) if _is_choice(arm) else [])]
    # What has an example comes last, and the example ends the list.
    rest = sorted((_allowed(arm) for arm in arms if not _is_choice(arm)), key=lambda text: "as in" in text)
    return joined([*listed, *rest])


def _allowed(arm: Any) -> str:
    arguments = typing.get_args(arm)
    if arm is types.NoneType:
        return "null"
    if arm in _PLAIN:
        return _PLAIN[arm][1]
    if dataclasses.is_dataclass(arm):
        return f"a section of keys and values, such as {next(iter(field_types(typing.cast(type, arm))))}"
    match typing.get_origin(arm):
        case origin if origin is list and not _is_plain_list(arm):
            return f"points [[progress, {_PLAIN[typing.get_args(arguments[0])[1]][1].removeprefix('a ')}], …]"
        case origin if origin is list and _is_choice(arguments[0]):
            return f"a list of {allowed(arguments[0])}"
        case origin if origin is list:
            return f"a list of {_PLAIN[arguments[0]][2]}, as in {_EXAMPLES[arguments[0]]}"
        case origin if origin is tuple:
            return f"{len(arguments)} {_PLAIN[arguments[0]][2]}, as in {','.join(['0.5'] * len(arguments))}"
        case origin if origin is dict:
            return "names with values, as in {name: 1}"
    return "a value"


def choices(annotation: Any) -> list[str]:
    """The values to choose from, if there are few: those of a Literal, of a list of one, of a bool."""
    for arm in _arms(annotation):
        if _is_choice(arm):
            return list(map(str, typing.get_args(arm)))
        if arm is bool:
            return ["true", "false"]
        if typing.get_origin(arm) is list and (inner := choices(typing.get_args(arm)[0])):
            return inner
    return []


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value, as YAML gives it, is of a type."""
    return any(_fits(arm, value) for arm in _arms(annotation))


def _fits(arm: Any, value: Any) -> bool:
    arguments = typing.get_args(arm)
    if arm is int or arm is float:
        return isinstance(value, int | arm) and not isinstance(value, bool)
    if arm in (bool, str, types.NoneType):
        return isinstance(value, arm)
    if arm is Path:
        return isinstance(value, str | Path)
    if _is_choice(arm):
        return value in arguments
    match typing.get_origin(arm):
        case origin if origin is list:
            return isinstance(value, list) and all(fits(arguments[0], item) for item in value)
        case origin if origin is tuple:
            return isinstance(value, list | tuple) and len(value) == len(arguments) and all(map(fits, arguments, value))
        case origin if origin is dict:
            return isinstance(value, dict) and all(fits(arguments[1], item) for item in value.values())
    return isinstance(value, dict) if dataclasses.is_dataclass(arm) else True


def joined(words: Sequence[str], last: str = "or") -> str:
    """``a, b or c``."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def _arms(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _is_choice(arm: Any) -> bool:
    return typing.get_origin(arm) is Literal


def _is_plain_list(arm: Any) -> bool:
    origin, arguments = typing.get_origin(arm), typing.get_args(arm)
    return origin in (list, tuple) and all(item in _PLAIN or _is_choice(item) for item in arguments)


def _value_type(annotation: Any) -> Any:
    """Of what lies in a dict, however deep."""
    arguments = typing.get_args(annotation)
    return arguments[1] if typing.get_origin(annotation) is dict else Any


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
