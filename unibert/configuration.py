"""From YAML files and dotted command-line overrides to typed, checked configuration dataclasses.

jsonargparse does the parsing and the typing; this module adds one-sentence errors that name the key and the mend.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from unibert.errors import UserError

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
PRESETS = Path(__file__).parent / "presets"


def parser_for(config_class: type, prog: str, description: str) -> jsonargparse.ArgumentParser:
    """A parser with ``--config FILE`` and one dotted option for every field of ``config_class``."""
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def parse(parser: jsonargparse.ArgumentParser, config_class: type[Config], arguments: Sequence[str]) -> Config:
    """The configuration that ``arguments`` describe; files first, later ones and dotted options override.

    Raises:
        UserError: for an unknown key (with the nearest right one), a mistyped value, a missing key, a combination that
            a dataclass refuses.
    """
    arguments = _with_values(config_class, arguments)
    _check_options(config_class, arguments)
    for path in _config_files(arguments):
        check_keys(config_class, read_yaml(path), source=str(path))
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    try:
        values = vars(parser.instantiate(parser.parse_args(arguments)))
        return config_class(**{name: value for name, value in values.items() if name in names})
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise UserError(_sentence(error)) from error
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def run_file(name: str) -> Path:
    """The YAML file that ``name`` means: a path, or a preset that ships with the package."""
    preset = PRESETS / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    if preset.is_file():
        return preset
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    raise UserError(f"{name}: no such run file, and no preset of that name; presets are {', '.join(presets)}")


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
            raise UserError(f"{source}: {_unknown(prefix + str(key), str(key), list(fields), prefix)}")
        nested = nested_dataclass(fields[key])
        if nested is not None and isinstance(value, dict):
            check_keys(nested, value, source=source, prefix=f"{prefix}{key}.")


def field_types(config_class: type) -> dict[str, Any]:
    """Field names of a dataclass with their resolved types."""
    hints = typing.get_type_hints(config_class)
    return {f.name: hints[f.name] for f in dataclasses.fields(config_class)}


def nested_dataclass(annotation: Any) -> type | None:
    """The dataclass in ``annotation`` (itself, or one arm of an Optional), if any."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)  # type: ignore[return-value]


def _with_values(config_class: type, arguments: Sequence[str]) -> list[str]:
    """``arguments`` with a bare ``--flag`` of a bool written out as ``--flag=true``."""
    flags = {f"--{name}" for name, annotation in field_types(config_class).items() if annotation is bool}
    following = [*arguments[1:], "--"][: len(arguments)]
    return [
        f"{word}=true" if word in flags and after.startswith("--") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def _check_options(config_class: type, arguments: list[str]) -> None:
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        dotted = argument[2:].split("=")[0]
        if dotted in ("config", "help") or dotted.startswith("print_config"):
            continue
        level: type | None = config_class
        prefix = ""
        for part in dotted.split("."):
            if level is None:
                break
            fields = field_types(level)
            if part.rstrip("+") not in fields:
                raise UserError(f"--{dotted}: {_unknown(prefix + part, part, list(fields), prefix)}")
            level = nested_dataclass(fields[part.rstrip("+")])
            prefix += f"{part}."


def _config_files(arguments: list[str]) -> list[Path]:
    files = [Path(after) for before, after in itertools.pairwise(arguments) if before == "--config"]
    return files + [Path(a.removeprefix("--config=")) for a in arguments if a.startswith("--config=")]


def _unknown(dotted: str, key: str, known: list[str], prefix: str) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    where = f"{prefix[:-1]} has" if prefix else "there are"
    hint = f"did you mean {prefix + nearest[0]!r}?" if nearest else f"{where} the keys {', '.join(known)}"
    return f"unknown key {dotted!r}; {hint}"


def _sentence(error: Exception) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith(("- ", "Subtypes", "Given value type", "Errors")))
    return text.replace('Parser key "', "").replace('":', ":", 1)
