"""Checkpoint files written from copies, so that a run waits for memory and not for the disk."""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from unibert.files import flush_to_disk

_ALIGNMENT = 64
"""Bytes; of torch's allocator for CPUs too."""

_SLACK = 1 << 20
"""Bytes for what tensors leave free between them."""


@dataclass(frozen=True)
class Written:
    """Result of one rank's writing."""

    files: dict[str, str]
    """SHA-256 by file name."""
    seconds: float


@dataclass(frozen=True)
class Copied:
    """Content of one file."""

    path: Path
    structure: bytes
    """Pickle in which indices into ``tensors`` stand for the tensors."""
    tensors: list[torch.Tensor]


class Copies:
    """Copies of what ``torch.save`` would write. :func:`write` writes them while the originals change.

    Their memory, page-locked for tensors of a GPU, is used again after the next :meth:`take`.
    """

    def __init__(self) -> None:
        self._reserve = torch.UntypedStorage(0)
        self._reserve_used = 0
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}
        self._used: dict[tuple[Any, ...], torch.Tensor] = {}
        self._files: list[Copied] = []

    def reserve(self, num_bytes: int, *, pinned: bool) -> None:
        """Allocate memory for the first copies, which would otherwise wait for the operating system.

        Args:
            num_bytes: size of the copies. Memory for what does not fit is allocated when it is copied.
            pinned: whether to page-lock the memory, for fast copies from a GPU.
        """
        memory = torch.empty(num_bytes + _SLACK, dtype=torch.uint8, pin_memory=pinned)
        # The operating system provides the pages when they are first written.
        self._reserve = memory.zero_().untyped_storage()

    @property
    def num_bytes(self) -> int:
        """Size of the copies that have not been taken yet."""
        return sum(len(file.structure) + sum(t.nbytes for t in file.tensors) for file in self._files)

    def copy(self, state_dict: Any, path: str) -> None:
        """Copy what ``torch.save`` would write to ``path``. Replaces ``save`` of DeepSpeed's checkpoint engine."""
        structure = io.BytesIO()
        copier = _Copier(structure, self, Path(path).name)
        copier.dump(state_dict)
        self._files.append(Copied(Path(path), structure.getvalue(), copier.tensors))

    def buffer_like(self, tensor: torch.Tensor, *key: Any) -> torch.Tensor:
        """CPU memory for a copy of ``tensor``; the same memory for the same ``key``, shape and dtype."""
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
        # An empty tensor would start where the next one starts, which torch.save rejects as one storage of two dtypes.
        if start == end or end > self._reserve.nbytes():
            return None
        self._reserve_used = -(-end // _ALIGNMENT) * _ALIGNMENT
        # A storage of its own, because torch.save writes a tensor's whole storage.
        storage: torch.UntypedStorage = self._reserve[start:end]
        return torch.empty(0, dtype=tensor.dtype).set_(storage).view(tensor.shape)

    def take(self) -> list[Copied]:
        """Return the copies made since the last call. They must be written before :meth:`copy` is called again."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        files, self._files = self._files, []
        self._buffers, self._used = self._used, {}
        return files


class _Copier(pickle.Pickler):
    """Replaces tensors by indices. A tensor that occurs several times is copied once."""

    def __init__(self, structure: io.BytesIO, copies: Copies, name: str) -> None:
        super().__init__(structure, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._copies, self._name = copies, name
        self._numbers: dict[tuple[Any, ...], int] = {}

    def persistent_id(self, item: Any) -> int | None:
        if not isinstance(item, torch.Tensor):
            return None
        # Tied weights are two tensors at one address. Empty tensors have no address.
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


class _DigestedFile:
    """A file that ``torch.save`` writes, and the digest of what it has written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.content = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.content.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


def write(files: list[Copied]) -> Written:
    """Write the files and flush them to disk. Digests are taken of what is written, which is not read again.

    Raises:
        OSError, RuntimeError: if one cannot be written.
    """
    started = time.perf_counter()
    digests = {}
    for file in files:
        with file.path.open("wb") as opened:
            digested = _DigestedFile(opened)
            torch.save(_Restorer(file.structure, file.tensors).load(), cast("IO[bytes]", digested))
        flush_to_disk(file.path)
        digests[file.path.name] = digested.content.hexdigest()
    return Written(digests, time.perf_counter() - started)
