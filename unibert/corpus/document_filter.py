"""A function of the user's own that changes or drops documents, for instance to remove personal data."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from unibert.errors import TransientError, UserError, short_message

DocumentFilter = Callable[[str, str], str | None]
"""Takes a document's normalised text and the code of its language; returns the text to use, or None to drop it."""


@cache
def load_document_filter(name: str) -> DocumentFilter:
    """Return the function that ``module:function`` names.

    Raises:
        UserError: if there is no such function.
    """
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UserError(f"document_filter: {name!r} must name a function as module:function")
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # the module is the user's, and may fail in any way
        raise UserError(
            f"document_filter: {module} cannot be imported ({short_message(error)}); install it, or set PYTHONPATH to "
            "its folder"
        ) from error
    if not callable(found := getattr(loaded, function, None)):
        raise UserError(f"document_filter: {loaded.__file__} has no function {function!r}")
    return found


def filter_digest(name: str) -> str:
    """Return the SHA-256 (hex) of the module's file, "" if it has none. What the module imports does not count."""
    load_document_filter(name)
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def filtered(name: str, text: str, language: str, where: str) -> str | None:
    """Return what the function makes of a text; ``where`` names the document in errors.

    Raises:
        TransientError: if the function fails, since what it uses may be out of reach for a while.
        UserError: if it returns neither text nor None.
    """
    try:
        result = load_document_filter(name)(text, language)
    except UserError:
        raise
    except Exception as error:
        raise TransientError(f"document_filter: {name} failed on {where} ({error!r})") from error
    if result is not None and not isinstance(result, str):
        raise UserError(f"document_filter: {name} returned {result!r} for {where}; return text, or None to drop it")
    return result
