"""docs/ds_configs.md says what the files in ds_configs set, and with which values."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from unibert.training.engine import DS_CONFIGS

DOCUMENT = DS_CONFIGS.parent / "docs" / "ds_configs.md"
NAMES = sorted(path.stem for path in DS_CONFIGS.glob("*.json"))
FILE, SETTING = r"zero\d\w*", r"[a-z]\w+(?:\.\w+)*"


def rows(name: str) -> dict[str, list[str]]:
    """The other cells of those lines of tables that begin with a name in backticks, by that name."""
    found = re.findall(rf"^\| `({name})`[^|]*\|(.*)\|$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    return {named: [cell.strip() for cell in cells.split("|")] for named, cells in found}


def settings(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its dotted name and its value; a section's name goes before its keys, an offload's does not."""
    for key, value in content.items():
        if key in ("zero_optimization", "bf16", "fp16"):
            yield from settings(value, f"{key}.")
        elif isinstance(value, dict):
            yield prefix + key, "in"
            yield from settings(value)
        else:
            yield prefix + key, json.dumps(value)


def test_every_file_has_a_line_and_no_other():
    assert sorted(rows(FILE)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_sets_is_in_the_document(name):
    content = json.loads((DS_CONFIGS / f"{name}.json").read_text())
    zero = content["zero_optimization"]
    [precision] = {"bf16", "fp16"} & set(content)
    offloaded = [what for key, what in (("optimizer", "optimizer"), ("param", "weights")) if f"offload_{key}" in zero]
    assert rows(FILE)[name] == [str(zero["stage"]), precision, ", ".join(offloaded) or "nothing"]
    documented = {setting: cells[0] for setting, cells in rows(SETTING).items()}
    for setting, value in settings(content):
        said = documented.get(setting, "nothing")
        # The stage is in the files' table, and an offload's line names its files.
        assert said == value or said == "by file" or (value == "in" and said.startswith("in ")), setting
