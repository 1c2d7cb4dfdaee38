"""Checkpoint files written from copies, so that a run waits for memory and not for the disk."""

from __future__ import annotations

import io
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unibert.files import file_sha256

_ALIGNMENT = 64
"""Bytes; of torch's allocator for CPUs too."""

_SLACK = 1 << 20
"""Bytes for what tensors leave free between them."""


@dataclass(frozen=True)
class Written:
    """What one rank's writing came to."""

    files: dict[str, str]
    """SHA-256 by file name."""
    seconds: float


@dataclass(frozen=True)
class Copied:
    """What goes into one file."""

    path: Path
    structure: bytes
    """Pickled, with numbers in the place of tensors."""
    tensors: list[torch.Tensor]


class Copies:
    """Copies of what ``torch.save`` would write, for :func:`write` to write while the originals change.

    Their memory, page-locked for tensors of a GPU, serves again after the next :meth:`take`.
    """

    def __init__(self) -> None:
        self._reserve = torch.UntypedStorage(0)
        self._reserve_used = 0
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}
        self._used: dict[tuple[Any, ...], torch.Tensor] = {}
        self._files: list[Copied] = []

    def reserve(self, num_bytes: int, *, pinned: bool) -> None:
        """Have memory ready for the first copies, which else wait for the system to find it.

        Args:
            num_bytes: of the copies; what does not fit is asked for when it is wanted.
            pinned: page-locked, as copies from a GPU want it.
        """
        memory = torch.empty(num_bytes + _SLACK, dtype=torch.uint8, pin_memory=pinned)
        # The system finds memory when it is first written to.
        self._reserve = memory.zero_().untyped_storage()

    @property
    def num_bytes(self) -> int:
        """Of the copies that were not taken yet."""
        return sum(len(file.structure) + sum(t.nbytes for t in file.tensors) for file in self._files)

    def copy(self, state_dict: Any, path: str) -> None:
        """Take over anything that ``torch.save`` can write to ``path``; stands in for DeepSpeed's engine's ``save``."""
        structure = io.BytesIO()
        copier = _Copier(structure, self, Path(path).name)
        copier.dump(state_dict)
        self._files.append(Copied(Path(path), structure.getvalue(), copier.tensors))

    def buffer_like(self, tensor: torch.Tensor, *key: Any) -> torch.Tensor:
        """CPU memory for a copy of ``tensor``, the same one for the same ``key``, shape and dtype."""
        key = (*key, tensor.shape, tensor.dtype)
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._reserved_like(tensor)
        if buffer is None:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._used[key] = buffer
        return buffer

    def _reserved_like(self, tensor: torch.Tensor) -> torch.Tensor | None:
        start = self._reserve_used
        end = start + tensor.nbytes
        # An empty tensor would lie where the next one begins, which torch.save takes for one memory of two dtypes.
        if start == end or end > self._reserve.nbytes():
            return None
        self._reserve_used = -(-end // _ALIGNMENT) * _ALIGNMENT
        # A storage of its own: torch.save writes the whole storage of a tensor.
        storage: torch.UntypedStorage = self._reserve[start:end]
        return torch.empty(0, dtype=tensor.dtype).set_(storage).view(tensor.shape)

    def take(self) -> list[Copied]:
        """The copies made since the last call, which must have been written by the time that :meth:`copy` is called."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        files, self._files = self._files, []
        self._buffers, self._used = self._used, {}
        return files


class _Copier(pickle.Pickler):
    """Puts numbers in the place of tensors, each of which is copied once however often it occurs."""

    def __init__(self, structure: io.BytesIO, copies: Copies, name: str) -> None:
        super().__init__(structure, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._copies, self._name = copies, name
        self._numbers: dict[tuple[Any, ...], int] = {}

    def persistent_id(self, item: Any) -> int | None:
        if not isinstance(item, torch.Tensor):
            return None
        # Tied weights are two tensors in one place. Empty ones have no place.
        place = (item.data_ptr() or id(item), item.shape, item.stride(), item.dtype)
        if place not in self._numbers:
            self._numbers[place] = len(self.tensors)
            copy = self._copies.buffer_like(item, self._name, len(self.tensors))
            copy.copy_(item.detach(), non_blocking=True)
            self.tensors.append(copy)
        return self._numbers[place]


class _Restorer(pickle.Unpickler):
    def __init__(self, structure: bytes, tensors: list[torch.Tensor]) -> None:
        super().__init__(io.BytesIO(structure))
        self._tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        return self._tensors[number]


def write(files: list[Copied]) -> Written:
    """Write the files and flush them to the disk.

    Raises:
        OSError, RuntimeError: where one cannot be written.
    """
    started = time.perf_counter()
    digests = {}
    for file in files:
        torch.save(_Restorer(file.structure, file.tensors).load(), file.path)
        flush_to_disk(file.path)
        digests[file.path.name] = file_sha256(file.path)
    return Written(digests, time.perf_counter() - started)


def flush_to_disk(path: Path) -> None:
    """Have a file's content, or a folder's entries, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
