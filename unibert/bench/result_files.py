"""Result files of a benchmark: one JSON file, or results.json and results.csv with a row for each provider."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unibert.errors import UserError
from unibert.files import write_atomically, write_json

FORMAT = 2
"""Version in the key ``format`` of results.json; 1 had another name for ``provider``."""


def label(row: Mapping[str, Any]) -> str:
    """Provider, with the chosen option in parentheses."""
    return f"{row['provider']} ({row['option']})" if row["option"] else str(row["provider"])


def write_results(results: Mapping[str, Any], folder: Path, columns: Sequence[str], *, tables: bool = True) -> None:
    """Write results.json and, if ``tables``, its rows to results.csv, each atomically.

    Raises:
        UserError: if the folder cannot be written.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results["rows"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"results.csv": table.getvalue()} if tables else {}
        for name, text in (texts | {"results.json": json.dumps(results, indent=1) + "\n"}).items():
            write_atomically(folder / name, text)
    except OSError as error:
        raise UserError(f"{folder}: the results cannot be written: {error.strerror}") from error


def write_result_file(results: Mapping[str, Any], path: Path) -> None:
    """Write one JSON file, and make its folder.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def read_results(folder: Path) -> dict[str, Any]:
    """Read results.json in ``folder``.

    Raises:
        UserError: if the file is missing or was not written by this version of `write_results`.
    """
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}") from error
    if not isinstance(results, dict) or "format" not in results or "rows" not in results:
        raise UserError(f"{path}: is not a results file of 'unibert bench'")
    if results["format"] != FORMAT:
        raise UserError(f"{path}: has format {results['format']}, this version reads {FORMAT}; run the benchmark again")
    return results
