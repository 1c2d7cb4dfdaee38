"""Whether a provider can run on this machine."""

from __future__ import annotations

from unibert.environment import package_versions


class NotAvailableError(Exception):
    """The provider cannot run on this machine; the message gives the reason."""


def require_package(package: str) -> str:
    """Return the version of a provider's package.

    Raises:
        NotAvailableError: if it is not installed.
    """
    versions = package_versions([package])
    if not versions:
        raise NotAvailableError(f"{package} is not installed")
    return versions[package]
