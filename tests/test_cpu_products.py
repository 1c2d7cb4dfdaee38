"""fp32 products with the library that is fastest on this CPU."""

import pytest
import torch

from unibert.cpu_products import use_fastest_products


@pytest.fixture(autouse=True)
def unchanged_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("length", [64, 384, 1536])
def test_products_are_as_exact_as_fp32(length):
    use_fastest_products(torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    left, right = torch.rand(300, length, generator=generator), torch.rand(length, 200, generator=generator)
    exact = left.double() @ right.double()
    # Each of the sums of positive numbers rounds at most by 2^-24; factors in bf16 would differ by about 2^-9.
    assert ((left @ right - exact).abs() <= length * 2.0**-24 * exact).all()


def test_only_a_cpu_that_gains_is_changed():
    torch.set_float32_matmul_precision("highest")
    assert not use_fastest_products(torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == "highest"
    is_changed = use_fastest_products(torch.device("cpu"))
    assert (torch.get_float32_matmul_precision() != "highest") == is_changed
    if not str(torch.cpu.get_capabilities().get("cpu_name")).startswith("AMD"):
        assert not is_changed
