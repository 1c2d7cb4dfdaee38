"""Whether a peer can take part here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


class NotAvailableError(Exception):
    """This provider cannot take part here; the message says why."""


def installed(package: str) -> str:
    """The version of a peer's package.

    Raises:
        NotAvailableError: if it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        raise NotAvailableError(f"{package} is not installed") from None
