"""What lets a CPU's training reuse its memory, in processes of their own, since it holds for a whole process."""

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKS = """
import os
{prepare}
import torch
print(os.environ.get("THP_MEM_ALLOC_ENABLE"), [torch.empty(2**size).data_ptr() % 4096 == 0 for size in (20, 24)])
"""


def printed(prepare: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", BLOCKS.format(prepare=prepare)], capture_output=True, text=True, check=True
    )
    return process.stdout.strip()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists() or sys.platform != "linux", reason="for Linux without a GPU")
def test_large_blocks_begin_at_pages():
    prepare = "from unibert.training.freed_memory import prepare_process; prepare_process()"
    assert printed(prepare) == "1 [True, True]"
    assert printed(f"os.environ['THP_MEM_ALLOC_ENABLE'] = '0'; {prepare}").startswith("0 [False")
