"""Reading of documents from Parquet files, such as ``wikimedia/wikipedia`` and FineWiki on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unibert.errors import UserError, short_message

_ROWS = 256
"""Rows in a batch: few, since a row may be a page of a megabyte."""
_IDS = ("page_id", "id")
"""Columns with the id of a document. FineWiki's ``id`` contains the language, its ``page_id`` does not."""
_DATED_CODE = re.compile(r"\d{8}\.([a-z][a-z_-]*)")
_WIKI = re.compile(r"([a-z][a-z_]*)wiki")


def parquet_language(path: Path) -> str:
    """Return the language code in the name of a file's folder, as in ``20231101.vi`` or ``viwiki``; "" if none."""
    folder = path.absolute().parent.name
    match = _DATED_CODE.fullmatch(folder) or _WIKI.fullmatch(folder)
    return "" if match is None else match[1].replace("_", "-")


def read_parquet(path: Path) -> Iterator[list[dict[str, str]]]:
    """Yield the rows of a file in batches, in order, as records of text with the keys ``id``, ``title`` and ``text``.

    ``id`` is missing if there is no column of ids, and ``title`` is empty if there is none. Other columns are not read.

    Raises:
        UserError: if pyarrow is missing, the file cannot be read, or it has no column ``text`` of strings.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow; install unibert[parquet]") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if "text" not in schema.names or not _is_text(pyarrow.types, schema.field("text").type):
                raise UserError(f'{path}: no column "text" with strings; the columns are {", ".join(schema.names)}')
            ids = next((name for name in _IDS if name in schema.names), None)
            wanted = {"text": "text", "title": "title", "id": ids}
            names = {key: name for key, name in wanted.items() if name in schema.names}
            for batch in file.iter_batches(_ROWS, columns=list(names.values())):
                columns = {key: batch.column(name).to_pylist() for key, name in names.items()}
                yield [
                    {"title": "", **{key: _text(value) for key, value in zip(columns, row, strict=True)}}
                    for row in zip(*columns.values(), strict=True)
                ]
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({short_message(error)}); fetch it again") from error


def _is_text(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _text(value: object) -> str:
    return "" if value is None else str(value)
