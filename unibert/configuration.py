"""Parse YAML files and dotted command-line overrides into typed and validated configuration dataclasses.

jsonargparse parses and converts; this module adds one-sentence errors that name the key and its allowed values.
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
    ParsedWords,
    allowed_values,
    annotation_of,
    choices,
    field_types,
    join_words,
    matches_type,
    missing_keys,
    nested_dataclass,
    option_word,
    parse_words,
    unknown_key,
)

_BOOL, _FLOAT, _TIMESTAMP = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "timestamp"))
Config = TypeVar("Config")


class _Loader(yaml.SafeLoader):
    """YAML in which ``no`` is a string, ``1e-3`` a number and ``2026-11-22`` a string, as in YAML 1.2."""


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
    """Return the configuration that ``words`` describe. Dotted options override files, and later ones earlier ones.

    Args:
        config_class: a dataclass; each of its fields is an option, and fields of nested dataclasses are dotted options.
        words: ``--config FILE`` and options.
        prog: the command, for the message about missing keys.

    Raises:
        UserError: for an unknown key (with the nearest known one), a value of the wrong type, a missing key, or a
            combination that a dataclass rejects.
    """
    parsed = parse_words(words, config_class)
    if parsed.positionals:
        raise UserError(f"{parsed.positionals[0]}: belongs to no option; options are written --key value")
    for path in _config_files(parsed):
        check_keys(config_class, read_yaml(path), source=str(path))
    parser = jsonargparse.ArgumentParser(prog=prog, add_help=False, exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config_class, as_group=False)
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    # jsonargparse would take such a text in an optional section for a mapping.
    texts = [(key, value) for key, value in parsed.options if _is_text_with_colon(config_class, key, value)]
    options = [option for option in parsed.options if option not in texts]
    try:
        namespace = parser.parse_args([option_word(*option) for option in options + [(key, "") for key, _ in texts]])
        for key, text in texts:
            namespace[key] = text
        values = vars(parser.instantiate(namespace))
        return config_class(**{name: value for name, value in values.items() if name in names})
    except (argparse.ArgumentError, jsonargparse.ArgumentError, ValueError, TypeError) as error:
        mistake = next(_mistakes(config_class, parsed, prog), None) or _message(error)
        raise UserError(mistake) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: if the file does not exist, is not valid YAML or holds no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must contain keys and values, as in 'seed: 1'")
    return content


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a dataclass to plain values that YAML can represent (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def check_keys(config_class: type, values: dict[str, Any], *, source: str, prefix: str = "") -> None:
    """Raise UserError for a key in ``values`` that ``config_class`` does not have, with the nearest known key."""
    fields = field_types(config_class)
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{source}: {unknown_key(prefix + str(key), str(key), list(fields), prefix)}")
        nested = nested_dataclass(fields[key])
        if nested is not None and isinstance(value, dict):
            check_keys(nested, value, source=source, prefix=f"{prefix}{key}.")


def _is_text_with_colon(config_class: type, key: str, value: str) -> bool:
    annotation = annotation_of(key, (config_class,), written=f"--{key}")
    return matches_type(annotation, "") and not matches_type(annotation, {}) and ": " in f"{value} "


def _config_files(parsed: ParsedWords) -> list[Path]:
    return [Path(value) for key, value in parsed.options if key == "config"]


def _mistakes(config_class: type, parsed: ParsedWords, prog: str) -> Iterator[str]:
    """Yield a sentence for each value of the wrong type, and one for the missing keys."""
    keys = []
    for path in _config_files(parsed):
        content = read_yaml(path)
        keys += list(_leaves(content))
        yield from (f"{path}: {mistake}" for mistake in _mistyped_keys(config_class, content))
    for key, text in parsed.options:
        if key in SPECIAL_KEYS:
            continue
        keys.append(key)
        annotation = annotation_of(key, (config_class,), written=f"--{key}")
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
        elif not matches_type(annotation, value) and not matches_type(annotation, text) and not key.endswith("+"):
            yield _mistyped(key, annotation, value)
    if missing := [f"--{key}" for key in missing_keys(config_class, keys)]:
        is_missing, them = ("is missing", "it") if len(missing) == 1 else ("are missing", "them")
        yield f"{join_words(missing, 'and')} {is_missing}; `{prog} --help` describes {them}"


def _mistyped_keys(config_class: type, values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, annotation in field_types(config_class).items():
        if name not in values:
            continue
        section = nested_dataclass(annotation)
        if section is not None and isinstance(values[name], dict):
            yield from _mistyped_keys(section, values[name], f"{prefix}{name}.")
        elif not matches_type(annotation, values[name]):
            yield _mistyped(prefix + name, annotation, values[name])


def _mistyped(key: str, annotation: Any, value: Any) -> str:
    quotes = "; put it in quotes" if matches_type(annotation, "") and not isinstance(value, str | list | dict) else ""
    nearest = difflib.get_close_matches(str(value), choices(annotation), n=1)
    return f"{key}: must be {allowed_values(annotation)}, got {value!r}{quotes}" + (
        f"; did you mean {nearest[0]!r}?" if nearest else ""
    )


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")


def _message(error: Exception) -> str:
    """Return the message of the dataclass; for optional sections jsonargparse embeds it in a list of failed types."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    messages = [line.removeprefix("- ") for line in lines if line.startswith("- ") and "Expected a <class" not in line]
    return messages[0] if messages else " ".join(lines).replace('Parser key "', "").replace('":', ":", 1)
