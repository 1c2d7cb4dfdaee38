"""Imports run one way: cli → reports, planning and the like → training → evaluation, model → stream → corpus."""

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
    "model": {"stream", "corpus", KERNELS},
    "training": {"evaluation", "model", "stream", "corpus", KERNELS},
    "teaching": {"training", "model", "stream", "corpus"},
    "evaluation": {"corpus"},
    "planning": {"training", "model", "corpus", KERNELS},
    "reports": {"training", "evaluation", "stream", "corpus"},
    "bench": {"planning", "reports", "training", "model", "stream", "corpus", KERNELS},
    "demo": {"reports", "evaluation", "training", "model", "corpus"},
    "study": {"evaluation", "training", "reports", "corpus"},
    "doctor": {"training", "evaluation", "stream", "corpus"},
}
"""Packages that each package of `unibert` may import, in addition to top-level modules, which import no package."""
ENTRY_POINTS = {"unibert.cli", "unibert.command", "unibert.__main__"}
"""The modules of the command line, which may import everything and which no package imports."""
CORPUS_FORMATS = {f"unibert.corpus.{name}" for name in ("manifest", "shards", "special_ids")} | {
    f"unibert.corpus.{kind}tokenizer" for kind in ("", "document_", "pretrained_", "text_")
}
"""The modules of `unibert.corpus` that readers of a corpus may import: its formats and its tokenizers."""
DOTTED_NAME = re.compile(rf"(?<![\w./-])(?:unibert|{KERNELS})(?:\.[a-z_]+)+(?:\.[A-Z_]\w*)?(?![\w-])")
"""A dotted name of a module or of an object in it, in a text."""


@cache
def modules() -> dict[str, ast.Module]:
    """Return all modules of both packages by their dotted names."""
    parsed = {}
    for root, package in ((REPOSITORY, "unibert"), (REPOSITORY / "kernels", KERNELS)):
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            parsed[name] = ast.parse(path.read_text(encoding="utf-8"))
    return parsed


@cache
def imports(module: str) -> frozenset[str]:
    """Return the modules of both packages that a module imports, in its functions too."""
    names = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {part if part in modules() else str(node.module) for part in parts}
    return frozenset(name for name in names if name.split(".")[0] in ("unibert", KERNELS))


def package_of(module: str) -> str:
    """Return the package of a module, such as ``training`` or the kernels' package; "" for top-level modules."""
    root, _, rest = module.partition(".")
    first = rest.split(".")[0]
    return root if root == KERNELS else first if first in MAY_IMPORT else ""


def test_every_package_is_listed():
    folders = {path.parent.name for path in (REPOSITORY / "unibert").glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_lower_packages(package):
    upwards = {
        (module, other)
        for module in modules()
        if package_of(module) == package
        for other in imports(module)
        if other in ENTRY_POINTS or package_of(other) not in {package, "", *MAY_IMPORT[package]}
    }
    assert not upwards


@pytest.mark.parametrize("package", ["stream", "model", "training", "evaluation"])
def test_readers_of_a_corpus_import_only_its_formats(package):
    imported = {
        other
        for module in modules()
        if package_of(module) == package
        for other in imports(module)
        if package_of(other) == "corpus"
    }
    assert imported <= CORPUS_FORMATS


@pytest.mark.parametrize(("folder", "may_import"), [("ranks", {"ranks"}), ("checkpoint", {"checkpoint", "ranks"})])
def test_within_training_imports_run_one_way(folder, may_import):
    """Checkpoints know the ranks, the loop knows both; nothing knows the loop."""
    imported = {
        other.split(".")[2]
        for module in modules()
        if module.startswith(f"unibert.training.{folder}.")
        for other in imports(module)
        if other.startswith("unibert.training.")
    }
    assert imported <= may_import


def test_top_level_modules_import_no_package():
    top_level = [module for module in modules() if not package_of(module) and module not in ENTRY_POINTS]
    upwards = {(module, other) for module in top_level for other in imports(module) if package_of(other)}
    assert not upwards


def test_kernels_do_not_import_unibert():
    imported = {other for module in modules() if package_of(module) == KERNELS for other in imports(module)}
    assert imported
    assert all(package_of(other) == KERNELS for other in imported)


def test_no_circular_imports():
    try:
        list(TopologicalSorter({module: imports(module) - {module} for module in modules()}).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_no_module_only_reexports_names():
    """The exceptions are `unibert.stream` and the kernels' package, which have a few public names."""
    public = {"unibert.stream", KERNELS}
    reexporting = {
        module
        for module, tree in modules().items()
        if module not in public
        and len(tree.body) > 1
        and all(isinstance(node, ast.Import | ast.ImportFrom | ast.Expr) for node in tree.body)
    }
    assert not reexporting


def test_names_in_strings_exist():
    """Check names of modules and objects in strings, as for ``python -m`` and monkeypatches, and in docstrings."""
    missing = {(where, name) for where, name in named_modules() if not exists(name)}
    assert not missing


def named_modules() -> Iterator[tuple[str, str]]:
    tests = {str(path): ast.parse(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "tests").rglob("*.py")}
    for where, tree in (modules() | tests).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in DOTTED_NAME.findall(node.value):
                    yield where, name


def exists(name: str) -> bool:
    module = name
    while module not in modules():
        module = module.rpartition(".")[0]
    attribute = name[len(module) + 1 :].partition(".")[0]
    return not attribute or attribute in names_in(module)


@cache
def names_in(module: str) -> set[str]:
    """Return the names that occur in a module: definitions, imports, variables."""
    nodes = list(ast.walk(modules()[module]))
    return (
        {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        | {node.id for node in nodes if isinstance(node, ast.Name)}
        | {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    )


def test_folders_of_tests_mirror_the_packages():
    folders = {str(path.parent.relative_to(REPOSITORY / "tests")) for path in (REPOSITORY / "tests").rglob("test_*.py")}
    packages = {".", "kernels", "slurm"} | {
        str(path.parent.relative_to(REPOSITORY / "unibert")) for path in (REPOSITORY / "unibert").rglob("__init__.py")
    }
    assert folders <= packages
