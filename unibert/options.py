"""The options of a configuration dataclass: names, types and descriptions, and how to parse them on a command line.

Only the standard library is imported here, so that help is fast.
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
"""Options of every command with a configuration, in addition to its fields."""


@dataclass(frozen=True)
class Option:
    """One field of a configuration, possibly of a nested section."""

    key: str
    """Dotted key."""
    annotation: Any
    description: str
    required: bool
    default: Any


@dataclass(frozen=True)
class Section:
    """The options of one dataclass, without those of nested sections."""

    key: str
    """Dotted key; empty for the outermost section."""
    description: str
    optional: bool
    """Whether the section may be null, which is its default."""
    options: tuple[Option, ...]


def sections(config_class: type, prefix: str = "", description: str = "", optional: bool = False) -> list[Section]:
    """Return the sections of ``config_class`` and all nested ones, outermost first."""
    descriptions = field_descriptions(config_class)
    annotations = field_types(config_class)
    own, nested = [], []
    for field in dataclasses.fields(config_class):
        key, annotation = f"{prefix}{field.name}", annotations[field.name]
        if (section := nested_dataclass(annotation)) is not None:
            nested += sections(section, f"{key}.", descriptions[field.name], types.NoneType in _members(annotation))
            continue
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        own.append(Option(key, annotation, descriptions[field.name], _is_required(field), default))
    return [Section(prefix.removesuffix("."), description, optional, tuple(own)), *nested]


def field_descriptions(config_class: type) -> dict[str, str]:
    """Return the docstrings of a dataclass's fields, each as one line of plain text; empty if missing."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0]).body
    described = {field.name: "" for field in dataclasses.fields(config_class)}
    for statement, after in itertools.pairwise(body):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                described[name] = " ".join(text.replace("``", "`").split())
    return described


def field_types(config_class: type) -> dict[str, Any]:
    """Return the field names of a dataclass with their resolved types."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def nested_dataclass(annotation: Any) -> type | None:
    """Return the dataclass in ``annotation`` (itself, or a member of a union), if any."""
    return next(
        (member for member in _members(annotation) if isinstance(member, type) and dataclasses.is_dataclass(member)),
        None,
    )


def is_bool(annotation: Any) -> bool:
    """Whether an option is a switch."""
    return bool in _members(annotation)


def is_text(annotation: Any) -> bool:
    """Whether an option takes any text, such as the name of a file."""
    return any(member in (str, Path, list[str], list[Path]) for member in _members(annotation))


def is_list(annotation: Any) -> bool:
    """Whether an option takes several values."""
    return any(typing.get_origin(member) is list for member in _members(annotation))


def missing_keys(config_class: type, given: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Yield the required dotted keys that are not in ``given``, including those of optional sections that it sets."""
    annotations = field_types(config_class)
    for field in dataclasses.fields(config_class):
        key = f"{prefix}{field.name}"
        given_here = [name for name in given if name == key or name.startswith(f"{key}.")]
        section = nested_dataclass(annotations[field.name])
        if section is not None and (_is_required(field) or any(name != key for name in given_here)):
            yield from missing_keys(section, given, f"{key}.")
        elif _is_required(field) and not given_here:
            yield key


# ---- parsing a command line --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParsedWords:
    """The words of a command line, split into options and positional words."""

    options: tuple[tuple[str, str], ...]
    """Dotted keys, without dashes, and their values as text."""
    positionals: tuple[str, ...]
    """The words that belong to no option."""


def parse_words(words: Sequence[str], *config_classes: type) -> ParsedWords:
    """Separate options, ``--key value`` or ``--key=value``, from positional words, in any order.

    A bool needs no value, and a list needs no brackets.

    Raises:
        UserError: for a key that none of ``config_classes`` has, with the nearest key, or for a key without a value.
    """
    options, positionals = [], []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("-") or word == "-":
            positionals.append(word)
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        annotation = annotation_of(key, config_classes, written=word.partition("=")[0])
        if key == "print_config":
            pass
        elif not equals and is_bool(annotation):
            value = remaining.pop(0) if remaining and remaining[0].lower() in ("true", "false", "null") else "true"
        elif not equals:
            if not remaining or remaining[0].startswith("--"):
                expected = "a file" if key == "config" else allowed_values(annotation)
                raise UserError(f"{word}: needs a value: {expected}")
            value = remaining.pop(0)
        options.append((key, _with_brackets(annotation, value)))
    return ParsedWords(tuple(options), tuple(positionals))


def option_word(key: str, value: str) -> str:
    """Write an option as one word."""
    return f"--{key}" if key == "print_config" and not value else f"--{key}={value}"


def annotation_of(key: str, config_classes: Sequence[type], *, written: str) -> Any:
    """Return the type of a dotted key; ``written`` is the key as the user wrote it.

    Raises:
        UserError: if no class has the key; the message names the nearest key.
    """
    if not written.startswith("--"):
        raise UserError(f"{written}: options are written --key value")
    if key in SPECIAL_KEYS:
        return str
    first = key.partition(".")[0].rstrip("+")
    level: Any = next((cls for cls in config_classes if first in field_types(cls)), None)
    if level is None:
        known = [name for cls in config_classes for name in field_types(cls)]
        raise UserError(f"{written}: {unknown_key(first if '.' not in key else key, first, known)}")
    prefix = ""
    for part in key.split("."):
        if not dataclasses.is_dataclass(level):
            # The keys of a dict are free.
            return _value_type(level)
        fields = field_types(typing.cast(type, level))
        if part.rstrip("+") not in fields:
            raise UserError(f"{written}: {unknown_key(prefix + part, part, list(fields), prefix)}")
        annotation = fields[part.rstrip("+")]
        level = nested_dataclass(annotation) or annotation
        prefix += f"{part}."
    return annotation


def unknown_key(dotted: str, key: str, known: Sequence[str], prefix: str = "") -> str:
    """Return a sentence about the unknown key ``dotted`` with the nearest key, or with all keys."""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    where = f"{prefix[:-1]} has the keys" if prefix else "the keys are"
    hint = f"did you mean {prefix + nearest[0]!r}?" if nearest else f"{where} {', '.join(known)}"
    return f"unknown key {dotted!r}; {hint}"


def _with_brackets(annotation: Any, value: str) -> str:
    """Write ``en,de`` as ``[en, de]`` for an option that takes a list or tuple of plain values."""
    members = _members(annotation)
    takes_list = any(_is_plain_list(member) for member in members)
    if not takes_list or value.startswith(("[", "-\n", "- ")) or (value == "null" and types.NoneType in members):
        return value
    return f"[{', '.join(part.strip() for part in value.split(',') if part.strip())}]"


# ---- descriptions of types ---------------------------------------------------------------------------------------

_PLAIN: dict[Any, tuple[str, str, str]] = {
    bool: ("true|false", "true or false", "true or false"),
    int: ("N", "a whole number", "whole numbers"),
    float: ("X", "a number", "numbers"),
    str: ("TEXT", "text", "names"),
    Path: ("PATH", "a path", "paths"),
}
"""Names of a type: in a list of options, in a sentence, and in a sentence about several values."""
_EXAMPLES = {int: "1,2", float: "0.5,1", str: "a,b", Path: "a,b"}


def metavar(annotation: Any) -> str:
    """Return the placeholder of a value in a list of options: ``N``, ``auto|cpu|cuda``, ``TEXT,…``."""
    return " or ".join(_metavar(member) for member in _members(annotation) if member is not types.NoneType)


def _metavar(member: Any) -> str:
    arguments = typing.get_args(member)
    if member in _PLAIN:
        return _PLAIN[member][0]
    if _is_choice(member):
        return "|".join(map(str, arguments))
    match typing.get_origin(member):
        case origin if origin is list and not _is_plain_list(member):
            return f"[[progress, {metavar(typing.get_args(arguments[0])[1])}], …]"
        case origin if origin is list:
            return f"{metavar(arguments[0])},…"
        case origin if origin is tuple:
            return ",".join(map(metavar, arguments))
        case origin if origin is dict:
            return "{name: value, …}"
    return "VALUE"


def allowed_values(annotation: Any) -> str:
    """Describe the allowed values for use in a sentence: ``mean, cls or token``."""
    members = _members(annotation)
    listed = [str(choice) for member in members if _is_choice(member) for choice in typing.get_args(member)]
    # A type with an example comes last, so that the example ends the list.
    rest = sorted((_allowed(member) for member in members if not _is_choice(member)), key=lambda text: "as in" in text)
    return join_words([*listed, *rest])


def _allowed(member: Any) -> str:
    arguments = typing.get_args(member)
    if member is types.NoneType:
        return "null"
    if member in _PLAIN:
        return _PLAIN[member][1]
    if dataclasses.is_dataclass(member):
        return f"a section of keys and values, such as {next(iter(field_types(typing.cast(type, member))))}"
    match typing.get_origin(member):
        case origin if origin is list and not _is_plain_list(member):
            return f"points [[progress, {_PLAIN[typing.get_args(arguments[0])[1]][1].removeprefix('a ')}], …]"
        case origin if origin is list and _is_choice(arguments[0]):
            return f"a list of {allowed_values(arguments[0])}"
        case origin if origin is list:
            return f"a list of {_PLAIN[arguments[0]][2]}, as in {_EXAMPLES[arguments[0]]}"
        case origin if origin is tuple:
            return f"{len(arguments)} {_PLAIN[arguments[0]][2]}, as in {','.join(['0.5'] * len(arguments))}"
        case origin if origin is dict:
            return "names with values, as in {name: 1}"
    return "a value"


def choices(annotation: Any) -> list[str]:
    """Return the values to choose from: those of a Literal, of a list of a Literal or of a bool, else none."""
    for member in _members(annotation):
        if _is_choice(member):
            return list(map(str, typing.get_args(member)))
        if member is bool:
            return ["true", "false"]
        if typing.get_origin(member) is list and (inner := choices(typing.get_args(member)[0])):
            return inner
    return []


def matches_type(annotation: Any, value: Any) -> bool:
    """Whether a value parsed from YAML has the annotated type."""
    return any(_matches(member, value) for member in _members(annotation))


def _matches(member: Any, value: Any) -> bool:
    arguments = typing.get_args(member)
    if member is int or member is float:
        return isinstance(value, int | member) and not isinstance(value, bool)
    if member in (bool, str, types.NoneType):
        return isinstance(value, member)
    if member is Path:
        return isinstance(value, str | Path)
    if _is_choice(member):
        return value in arguments
    match typing.get_origin(member):
        case origin if origin is list:
            return isinstance(value, list) and all(matches_type(arguments[0], item) for item in value)
        case origin if origin is tuple:
            return (
                isinstance(value, list | tuple)
                and len(value) == len(arguments)
                and all(map(matches_type, arguments, value))
            )
        case origin if origin is dict:
            return isinstance(value, dict) and all(matches_type(arguments[1], item) for item in value.values())
    return isinstance(value, dict) if dataclasses.is_dataclass(member) else True


def join_words(words: Sequence[str], last: str = "or") -> str:
    """Join words as ``a, b or c``."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _is_choice(member: Any) -> bool:
    return typing.get_origin(member) is Literal


def _is_plain_list(member: Any) -> bool:
    origin, arguments = typing.get_origin(member), typing.get_args(member)
    return origin in (list, tuple) and all(item in _PLAIN or _is_choice(item) for item in arguments)


def _value_type(annotation: Any) -> Any:
    """Return the type of a dict's values."""
    arguments = typing.get_args(annotation)
    return arguments[1] if typing.get_origin(annotation) is dict else Any


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
