import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads that wait for each other on fewer cores than there are workers take longer than one thread; so do those
    # of all processes that tests start. Threads are counted as torch is loaded.
    os.environ["OMP_NUM_THREADS"] = "1"
    # More than one, and torch.compile starts a process for each, which imports torch first.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import torch

# The tests need no network; this keeps the hub's client from trying for half a minute.
os.environ["HF_HUB_OFFLINE"] = "1"

if not torch.cuda.is_available():
    # Whether kernels are compiled or interpreted is decided when they, and Triton, are first imported.
    os.environ["TRITON_INTERPRET"] = "1"
    from unibert_kernels.fused import adversary, distillation, mlm_head  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

from tests.odd_offsets import odd_offsets
from tests.training.processes import placement


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--odd-offsets", action="store_true", help="place tensors and arrays as no allocator would")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--odd-offsets"):
        stack = ExitStack()
        stack.enter_context(odd_offsets())
        config.add_cleanup(stack.close)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that several workers end at about the same time: the tests under Slurm, which
    one worker runs, then files with slow tests, then those that train."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def position(item: pytest.Item) -> tuple[bool, bool, bool]:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return folder != "slurm", item.path not in slow, folder != "training"

    items.sort(key=position)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile``: a file's tests, which share fixtures, go to one worker, and so do all on the Slurm."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/slurm" if nodeid.startswith("tests/slurm/") else super()._split_scope(nodeid)

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def no_rank_left_over() -> Iterator[None]:
    """A command that trains in a test's own process sets a rank's variables; later tests start processes without."""
    before = {name: os.environ.get(name) for name in placement(0, 1, 0)}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real multilingual data beside the repository, or where UNIBERT_DATA says; tests that want it skip without."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("UNIBERT_DATA", default))
    if not (folder / "corpus").is_dir():
        pytest.skip(f"no real data in {folder}; set UNIBERT_DATA to run this test")
    return folder
