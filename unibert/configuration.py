"""From YAML files and dotted command-line overrides to typed, checked configuration dataclasses.

jsonargparse does the parsing and the typing; this module adds one-sentence errors that name the key and what it may be.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from unibert.errors import UserError
from unibert.options import (
    SPECIAL_KEYS,
    Given,
    allowed,
    annotation_of,
    as_word,
    choices,
    field_types,
    fits,
    joined,
    missing_keys,
    nested_dataclass,
    read_words,
    unknown_key,
)

_BOOL, _FLOAT, _TIMESTAMP = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "timestamp"))
Config = TypeVar("Config")


class _Loader(yaml.SafeLoader):
    """YAML in which ``no`` is a language, ``1e-3`` a number and ``2026-11-22`` a name, as they are in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT, _TIMESTAMP)]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"""^(?:[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?
        |[-+]?\d[\d_]*[eE][-+]?\d+
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.X,
    ),
    "-+.0123456789",
)
jsonargparse.set_loader("yaml", lambda text: yaml.load(text, Loader=_Loader), exceptions=(yaml.YAMLError,))


def parse(config_class: type[Config], words: Sequence[str], *, prog: str = "unibert") -> Config:
    """The configuration that ``words`` describe; files first, later ones and dotted options override.

    Args:
        config_class: a dataclass; each of its fields is an option, and those of nested dataclasses are dotted ones.
        words: ``--config FILE`` and options.
        prog: the command, for a sentence about what is missing.

    Raises:
        UserError: for an unknown key (with the nearest right one), a mistyped value, a missing key, a combination that
            a dataclass refuses.
    """
    given = read_words(words, config_class)
    if given.bare:
        raise UserError(f"{given.bare[0]}: belongs to no option; options are written --key value")
    for path in _config_files(given):
        check_keys(config_class, read_yaml(path), source=str(path))
    parser = jsonargparse.ArgumentParser(prog=prog, add_help=False, exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config_class, as_group=False)
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    try:
        values = vars(parser.instantiate(parser.parse_args([as_word(*option) for option in given.options])))
        return config_class(**{name: value for name, value in values.items() if name in names})
    except (argparse.ArgumentError, jsonargparse.ArgumentError, ValueError, TypeError) as error:
        mistake = next(_mistakes(config_class, given, prog), None) or _sentence(error)
        raise UserError(mistake) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, as in 'seed: 1'")
    return content


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain YAML-able values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def check_keys(config_class: type, values: dict[str, Any], *, source: str, prefix: str = "") -> None:
    """Refuse keys in ``values`` that ``config_class`` doesn't have, naming the nearest that it has."""
    fields = field_types(config_class)
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{source}: {unknown_key(prefix + str(key), str(key), list(fields), prefix)}")
        nested = nested_dataclass(fields[key])
        if nested is not None and isinstance(value, dict):
            check_keys(nested, value, source=source, prefix=f"{prefix}{key}.")


def _config_files(given: Given) -> list[Path]:
    return [Path(value) for key, value in given.options if key == "config"]


def _mistakes(config_class: type, given: Given, prog: str) -> Iterator[str]:
    """A sentence for each value that is not of its key's type, and one for the keys that are missing."""
    keys = []
    for path in _config_files(given):
        content = read_yaml(path)
        keys += list(_leaves(content))
        yield from (f"{path}: {mistake}" for mistake in _mistyped_keys(config_class, content))
    for key, text in given.options:
        if key in SPECIAL_KEYS:
            continue
        keys.append(key)
        annotation = annotation_of(key, (config_class,), shown=f"--{key}")
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            value = text
        section = nested_dataclass(annotation)
        if section is not None and isinstance(value, str) and Path(value).is_file():
            value = read_yaml(Path(value))
        if section is not None and isinstance(value, dict):
            check_keys(section, value, source=f"--{key}", prefix=f"{key}.")
            keys += list(_leaves(value, f"{key}."))
            yield from _mistyped_keys(section, value, f"{key}.")
        elif not fits(annotation, value) and not fits(annotation, text) and not key.endswith("+"):
            yield _mistyped(key, annotation, value)
    if missing := [f"--{key}" for key in missing_keys(config_class, keys)]:
        is_missing, them = ("is missing", "it") if len(missing) == 1 else ("are missing", "them")
        yield f"{joined(missing, 'and')} {is_missing}; `{prog} --help` describes {them}"


def _mistyped_keys(config_class: type, values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, annotation in field_types(config_class).items():
        if name not in values:
            continue
        section = nested_dataclass(annotation)
        if section is not None and isinstance(values[name], dict):
            yield from _mistyped_keys(section, values[name], f"{prefix}{name}.")
        elif not fits(annotation, values[name]):
            yield _mistyped(prefix + name, annotation, values[name])


def _mistyped(key: str, annotation: Any, value: Any) -> str:
    quotes = "; put it in quotes" if fits(annotation, "") and not isinstance(value, str | list | dict) else ""
    near = difflib.get_close_matches(str(value), choices(annotation), n=1)
    return f"{key}: must be {allowed(annotation)}, got {value!r}{quotes}" + (
        f"; did you mean {near[0]!r}?" if near else ""
    )


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")


def _sentence(error: Exception) -> str:
    """What the dataclass said, out of what jsonargparse makes of it where a section may be null."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    said = [line.removeprefix("- ") for line in lines if line.startswith("- ") and "Expected a <class" not in line]
    return said[0] if said else " ".join(lines).replace('Parser key "', "").replace('":', ":", 1)
