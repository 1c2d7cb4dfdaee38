"""Peak memory of a forward and backward pass, each in its own process."""

from __future__ import annotations

import subprocess
import sys

import pytest

VOCAB = 20_000
FEW, MANY = 1024, 5120

MLM_HEAD = """
loss = mlm_head_loss(hidden, weight, labels).loss
"""
DISTILLATION = """
loss = distillation_loss(hidden, weight, torch.randn(N, 16), torch.randn(V, 16), labels, ce_weight=0.5).loss
"""


def peak_mebibytes(loss: str, num_rows: int) -> float:
    program = f"""
import resource, torch
from unibert_kernels import distillation_loss, mlm_head_loss
torch.set_num_threads(1)
N, V = {num_rows}, {VOCAB}
hidden, weight = torch.randn(N, 16, requires_grad=True), torch.randn(V, 16, requires_grad=True)
labels = torch.randint(0, V, (N,))
{loss}
loss.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("loss", [MLM_HEAD, DISTILLATION], ids=["mlm_head", "distillation"])
def test_peak_memory_does_not_grow_with_rows_times_vocabulary(loss: str) -> None:
    growth = peak_mebibytes(loss, MANY) - peak_mebibytes(loss, FEW)
    # Logits of the added rows alone would take 4096 x 20000 x 4 bytes = 312 MiB. Hidden states and their gradients grow
    # by 1 MiB; the rest of the bound allows for the allocator.
    assert growth < 64
