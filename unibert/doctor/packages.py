"""Check Python and the packages against the requirements that ``unibert`` declares."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires

from unibert.doctor.finding import Finding, fail, ok, warn
from unibert.environment import package_versions
from unibert.installation import checkout_project

REPORTED = ("torch", "deepspeed", "transformers", "webdataset", "sentencepiece", "triton", "mpi4py")
"""Packages whose versions are reported even if nothing is wrong."""


def check_packages() -> Iterator[Finding]:
    """Yield a line for Python, one for all packages that satisfy the requirements, and one for each that does not."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield fail("packages", "packaging, which compares versions, is missing", _install("packaging"))
        return
    try:
        python_versions, declared = _requirements()
    except PackageNotFoundError:
        yield warn("packages", "unibert is not installed, so its requirements are unknown", "pip install -e .")
        return
    requirements, versions = [Requirement(text) for text in declared], Requirement(f"python{python_versions}").specifier
    python = platform.python_version()
    if python in versions:
        yield ok("Python", python)
    else:
        yield fail("Python", f"{python}, {versions} is needed", "create the virtual environment with another Python")
    satisfied = []
    for requirement in requirements:
        always, for_mpi = (not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in ("", "mpi"))
        if not for_mpi:
            continue
        installed = package_versions([requirement.name]).get(requirement.name)
        fix = _install(f"{requirement.name}{requirement.specifier}")
        if installed is None and always:
            yield fail(requirement.name, f"missing, {requirement.specifier} is needed", fix)
        elif installed is not None and not requirement.specifier.contains(installed, prereleases=True):
            mark = fail if always else warn
            yield mark(requirement.name, f"{installed}, {requirement.specifier} is needed", fix)
        elif installed is not None and requirement.name in REPORTED:
            satisfied.append(f"{requirement.name} {installed}")
    yield ok("packages", ", ".join(satisfied))


def _requirements() -> tuple[str, list[str]]:
    """Return the required versions of Python and the packages; those of the extra ``mpi`` have its marker.

    In a checkout they come from pyproject.toml, because the metadata of an editable installation may be outdated.
    """
    project = checkout_project()
    if project is None:
        return metadata("unibert")["Requires-Python"], requires("unibert") or []
    for_mpi = [f'{text}; extra == "mpi"' for text in project["optional-dependencies"]["mpi"]]
    return project["requires-python"], [*project["dependencies"], *for_mpi]


def _install(requirement: str) -> str:
    tested = "-c constraints.txt " if checkout_project() is not None else ""
    return f"pip install {tested}'{requirement}'"
