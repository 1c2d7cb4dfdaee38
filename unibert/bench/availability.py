"""Whether a peer can take part here."""

from __future__ import annotations

from unibert.environment import package_versions


class NotAvailableError(Exception):
    """This provider cannot take part here; the message says why."""


def installed(package: str) -> str:
    """The version of a peer's package.

    Raises:
        NotAvailableError: if it is not installed.
    """
    versions = package_versions([package])
    if not versions:
        raise NotAvailableError(f"{package} is not installed")
    return versions[package]
