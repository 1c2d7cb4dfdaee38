"""Python and the packages, against what ``unibert`` declares that it needs."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires

from unibert.doctor.finding import Finding, fail, ok, warn
from unibert.environment import package_versions
from unibert.installation import checkout_project

NAMED = ("torch", "deepspeed", "transformers", "webdataset", "sentencepiece", "triton", "mpi4py")
"""Whose versions are told where all is well, too."""


def check_packages() -> Iterator[Finding]:
    """A line for Python, one for all packages that are right, and one for each that is not."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield fail("packages", "packaging is missing, without which versions cannot be compared", _install("packaging"))
        return
    try:
        wanted_python, declared = _declared()
    except PackageNotFoundError:
        yield warn("packages", "unibert is not installed, so nothing says which it needs", "pip install -e .")
        return
    needed, wanted = [Requirement(text) for text in declared], Requirement(f"python{wanted_python}").specifier
    python = platform.python_version()
    if python in wanted:
        yield ok("Python", python)
    else:
        yield fail("Python", f"{python}, and {wanted} is needed", "make the virtual environment with another one")
    right = []
    for requirement in needed:
        always, for_mpi = (not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in ("", "mpi"))
        if not for_mpi:
            continue
        found = package_versions([requirement.name]).get(requirement.name)
        fix = _install(f"{requirement.name}{requirement.specifier}")
        if found is None and always:
            yield fail(requirement.name, f"missing, and {requirement.specifier} is needed", fix)
        elif found is not None and not requirement.specifier.contains(found, prereleases=True):
            mark = fail if always else warn
            yield mark(requirement.name, f"{found}, and {requirement.specifier} is needed", fix)
        elif found is not None and requirement.name in NAMED:
            right.append(f"{requirement.name} {found}")
    yield ok("packages", ", ".join(right))


def _declared() -> tuple[str, list[str]]:
    """The versions of Python, and the packages, those of the extra ``mpi`` marked as such.

    Of a checkout its pyproject.toml: what an editable installation has noted is as old as the installation.
    """
    project = checkout_project()
    if project is None:
        return metadata("unibert")["Requires-Python"], requires("unibert") or []
    for_mpi = [f'{text}; extra == "mpi"' for text in project["optional-dependencies"]["mpi"]]
    return project["requires-python"], [*project["dependencies"], *for_mpi]


def _install(requirement: str) -> str:
    tested = "-c constraints.txt " if checkout_project() is not None else ""
    return f"pip install {tested}'{requirement}'"
