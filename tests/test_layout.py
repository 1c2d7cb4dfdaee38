"""Imports run one way: cli → reports, planning and the like → training, evaluation → model → stream → corpus."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
KERNELS = "unibert_kernels"
MAY_IMPORT = {
    "corpus": set(),
    "stream": {"corpus"},
    "model": {"stream", KERNELS},
    "training": {"model", "stream", "corpus", KERNELS},
    "evaluation": set(),
    "planning": {"training", "model", "corpus", KERNELS},
    "reports": {"training", "evaluation", "stream", "corpus"},
    "bench": {"reports", "training", "model", "stream", "corpus", KERNELS},
    "demo": {"reports", "evaluation", "corpus"},
    "doctor": {"training", "stream", "corpus"},
}
"""Packages of `unibert`, besides the modules that lie beside them, which all may import and which import no package."""
ENTRANCES = {"unibert.cli", "unibert.command", "unibert.__main__"}
"""The command line, which may import everything and is imported by none of the packages."""
FORMATS = {f"unibert.corpus.{name}" for name in ("manifest", "shards", "tokenizer")}
"""All that those who read a corpus online know of how it is built."""
NAMED = re.compile(rf"(?<![\w./-])(?:unibert|{KERNELS})(?:\.[a-z_]+)+(?:\.[A-Z_]\w*)?(?![\w-])")
"""A dotted name in a text."""


@cache
def modules() -> dict[str, ast.Module]:
    """All modules of both packages by their dotted names."""
    found = {}
    for root, package in ((REPOSITORY, "unibert"), (REPOSITORY / "kernels", KERNELS)):
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of both packages that one imports anywhere, in its functions too."""
    found = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in modules() else str(node.module) for part in parts}
    return frozenset(name for name in found if name.split(".")[0] in ("unibert", KERNELS))


def package_of(module: str) -> str:
    """``training`` of what lies there, the kernels' package, or "" of modules beside the packages."""
    root, _, rest = module.partition(".")
    first = rest.split(".")[0]
    return root if root == KERNELS else first if first in MAY_IMPORT else ""


def test_every_package_has_its_place():
    folders = {path.parent.name for path in (REPOSITORY / "unibert").glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_what_is_below_it(package):
    own = [module for module in modules() if package_of(module) == package]
    upwards = {
        (module, other)
        for module in own
        for other in imports(module)
        if other in ENTRANCES or package_of(other) not in {package, "", *MAY_IMPORT[package]}
    }
    assert not upwards


@pytest.mark.parametrize("package", ["stream", "model", "training"])
def test_of_the_corpus_only_its_formats_are_known(package):
    known = {
        other
        for module in modules()
        if package_of(module) == package
        for other in imports(module)
        if package_of(other) == "corpus"
    }
    assert known <= FORMATS


def test_modules_beside_the_packages_import_no_package():
    beside = [module for module in modules() if not package_of(module) and module not in ENTRANCES]
    upwards = {(module, other) for module in beside for other in imports(module) if package_of(other)}
    assert not upwards


def test_kernels_import_nothing_of_unibert():
    known = {other for module in modules() if package_of(module) == KERNELS for other in imports(module)}
    assert known
    assert all(package_of(other) == KERNELS for other in known)


def test_no_circle():
    try:
        list(TopologicalSorter({module: imports(module) - {module} for module in modules()}).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_no_module_is_there_to_pass_names_on():
    """But for `unibert.stream` and the kernels' package, which have a few public names."""
    public = {"unibert.stream", KERNELS}
    empty = {
        module
        for module, tree in modules().items()
        if module not in public
        and len(tree.body) > 1
        and all(isinstance(node, ast.Import | ast.ImportFrom | ast.Expr) for node in tree.body)
    }
    assert not empty


def test_modules_that_are_named_in_texts_exist():
    """Such as those of ``python -m`` and of monkeypatches, which no import finds missing."""
    missing = {(where, name) for where, name in named_modules() if not exists(name)}
    assert not missing


def named_modules() -> Iterator[tuple[str, str]]:
    tests = {str(path): ast.parse(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "tests").rglob("*.py")}
    for where, tree in (modules() | tests).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in NAMED.findall(node.value):
                    yield where, name


def exists(name: str) -> bool:
    module = name
    while module not in modules():
        module = module.rpartition(".")[0]
    attribute = name[len(module) + 1 :].partition(".")[0]
    return not attribute or attribute in names_in(module)


@cache
def names_in(module: str) -> set[str]:
    """What a module defines or imports, and more."""
    nodes = list(ast.walk(modules()[module]))
    return (
        {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        | {node.id for node in nodes if isinstance(node, ast.Name)}
        | {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    )


def test_tests_lie_where_their_package_does():
    places = {str(path.parent.relative_to(REPOSITORY / "tests")) for path in (REPOSITORY / "tests").rglob("test_*.py")}
    packages = {".", "kernels", "slurm"} | {
        str(path.parent.relative_to(REPOSITORY / "unibert")) for path in (REPOSITORY / "unibert").rglob("__init__.py")
    }
    assert places <= packages
