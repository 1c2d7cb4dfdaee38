import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Whether kernels are compiled or interpreted is decided when they, and Triton, are first imported.
    os.environ["TRITON_INTERPRET"] = "1"
    from unibert_kernels.fused import adversary, distillation, mlm_head  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

from tests.odd_offsets import odd_offsets


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--odd-offsets", action="store_true", help="place tensors and arrays as no allocator would")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--odd-offsets"):
        stack = ExitStack()
        stack.enter_context(odd_offsets())
        config.add_cleanup(stack.close)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real multilingual data beside the repository, or where UNIBERT_DATA says; tests that want it skip without."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("UNIBERT_DATA", default))
    if not (folder / "corpus").is_dir():
        pytest.skip(f"no real data in {folder}; set UNIBERT_DATA to run this test")
    return folder
