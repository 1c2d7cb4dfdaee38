from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

from tests import odd_offsets
from tests.odd_offsets import ALIGNMENT, needs_compiler

pytestmark = needs_compiler


def tensor_offsets() -> set[int]:
    tensors = [torch.full((5, 7), float(number)) for number in range(50)]
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))
    return {tensor.data_ptr() % ALIGNMENT for tensor in tensors}


@pytest.mark.skipif(odd_offsets.in_use(), reason="all memory is at odd offsets")
def test_torch_puts_tensors_on_64_bytes_before_and_after() -> None:
    assert tensor_offsets() == {0}
    with odd_offsets.odd_offsets():
        assert odd_offsets.in_use()
    assert tensor_offsets() == {0}


def test_tensors_lie_at_every_odd_multiple_of_8_bytes() -> None:
    with odd_offsets.odd_offsets():
        assert tensor_offsets() == set(range(8, ALIGNMENT, 8))
        grown = torch.zeros(3)
        grown.resize_(1000).untyped_storage().resize_(8000)
        assert grown[:3].tolist() == [0, 0, 0]
        assert len(torch.empty(0)) == 0


def test_arrays_of_the_interpreter_lie_at_every_odd_element_and_are_laid_out_as_before() -> None:
    array = np.arange(32, dtype=np.float32).reshape(8, 4)
    with odd_offsets.odd_offsets():
        for values in (array, array.T):
            handles = [TensorHandle(values, tl.float32) for _ in range(200)]
            assert all((handle.data == values).all() for handle in handles)
            assert {handle.data.strides for handle in handles} == {values.strides}
            addresses = {handle.data.__array_interface__["data"][0] % ALIGNMENT for handle in handles}
            assert addresses == set(range(4, ALIGNMENT, 4))
        # No sum runs over these.
        for values in (np.arange(32), np.broadcast_to(array[0], (8, 4))):
            assert TensorHandle(values, tl.int64).data is values
