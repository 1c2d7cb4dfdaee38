"""Tensors and arrays at unusual addresses, which change with every allocation.

The address of an operand decides how some BLAS kernels divide a sum into vectors, and so the last bit of a product.
torch aligns every tensor to 64 bytes, so that a program repeats its bits; numpy places arrays, including those of
Triton's interpreter, wherever `malloc` does. With

    pytest --odd-offsets

all tests have torch's CPU tensors at multiples of 8 bytes but not of 64, and the interpreter's arrays at any odd
element: `unibert_kernels` must work with both. Tests of bits that depend on torch's own memory are skipped. Processes
that tests start allocate as usual.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ALIGNMENT = 64
"""Alignment of torch's own CPU allocator, in bytes."""
COMPILER = "g++"

needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"the allocator needs {COMPILER}")

_active = 0
_random = random.Random(0)


def in_use() -> bool:
    """Return whether memory is allocated at odd offsets now."""
    return _active > 0


@contextmanager
def odd_offsets() -> Iterator[None]:
    """Allocate at odd offsets; earlier allocations stay where they are."""
    global _active
    from triton.runtime.interpreter import TensorHandle

    _active += 1
    allocator().place_at_odd_offsets(True)
    with pytest.MonkeyPatch.context() as patch:
        check = TensorHandle.__post_init__

        def place(handle: Any) -> None:
            check(handle)
            handle.data = moved(handle.data)

        if _active == 1:
            patch.setattr(TensorHandle, "__post_init__", place)
        try:
            yield
        finally:
            _active -= 1
            allocator().place_at_odd_offsets(in_use())


def moved(array: np.ndarray) -> np.ndarray:
    """Copy an array of floats with the same layout, 1 to 15 elements behind a multiple of 64 bytes."""
    if array.dtype.kind != "f" or array.size < 2:
        return array
    if not array.flags.c_contiguous:
        return moved(array.T).T if array.flags.f_contiguous else array
    block = np.empty(array.nbytes + ALIGNMENT + 16 * array.itemsize, np.uint8)
    start = -block.__array_interface__["data"][0] % ALIGNMENT + _random.randrange(1, 16) * array.itemsize
    copy = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@cache
def allocator() -> ctypes.CDLL:
    """Compile the allocator of odd_offsets.cpp for the installed torch."""
    source, torch_folder = Path(__file__).with_suffix(".cpp"), Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "odd_offsets.so"
        command = [COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", str(source)]
        subprocess.run([*command, f"-L{torch_folder / 'lib'}", "-lc10", "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))
