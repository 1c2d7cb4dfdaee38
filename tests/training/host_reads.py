"""What the host reads from the device while a run trains, on a CPU, where reading costs nothing and nothing forbids it.

The parameters, the batches that are sent to the device, and all that is computed from them count as on the device. An
operation whose result the host needs before it can go on, or whose result's size depends on values, is a read. A copy
that does not block is none: `unibert.training.ranks.readback.Readback` makes such copies and reads them later.
"""

import json
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unibert.configuration import parse
from unibert.stream import Batch
from unibert.training.config import RunConfig
from unibert.training.loop import Pretraining
from unibert.training.metrics_log import MetricsLog
from unibert.training.ranks import readback
from unibert.training.ranks.collectives import join
from unibert.training.run_history import RunHistory

WAITING = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "masked_select", "nonzero", "repeat_interleave.Tensor",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
WAITING_METHODS = (Tensor.tolist, Tensor.numpy, Tensor.cpu)


class Reads:
    """The reads of each step."""

    def __init__(self) -> None:
        self.by_step: list[list[str]] = [[]]
        self._storages: dict[int, StorageWeakRef] = {}

    def put_on_device(self, tree: Any) -> None:
        for tensor in tensors(tree):
            storage = StorageWeakRef(tensor.untyped_storage())
            self._storages[storage.cdata] = storage

    def on_device(self, tree: Any) -> bool:
        return any(tensor.untyped_storage()._cdata in self._storages for tensor in tensors(tree))

    def count(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
        self.by_step[-1].append(f"{what} in {Path(frames[-1].filename).name}:{frames[-1].lineno}")


class Operations(TorchDispatchMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::")
        before = self.reads.on_device(args[:1]) if name == "copy_" else False
        result = func(*args, **kwargs)
        if not self.reads.on_device([args, kwargs]):
            return result
        by_mask = name.startswith("index") and any(t.dtype == torch.bool for t in tensors(args[1:2]))
        if by_mask or name in WAITING or name.split(".")[0] in WAITING:
            self.reads.count(name)
        if not (name == "copy_" and not before and len(args) > 2 and args[2]):
            self.reads.put_on_device(result)
        return result


class Methods(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING_METHODS and self.reads.on_device(args):
            self.reads.count(func.__name__)
        return func(*args, **(kwargs or {}))


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def count_reads(words: list[str], report: Path) -> None:
    """Run ``unibert pretrain`` on ``words``; write the reads by step to ``report`` as JSON.

    The copies of `Readback` count if they are read in the step in which they are made.
    """
    reads = Reads()
    to, advance, tolist = Batch.to, MetricsLog.advance, readback.Readback.tolist
    begin = readback.Readback.__init__
    made_in: dict[int, int] = {}

    def to_device(batch: Batch, device: torch.device) -> Batch:
        moved = to(batch, device)._with_tensors(torch.clone)
        reads.put_on_device(list(vars(moved).values()))
        return moved

    def next_step(log: MetricsLog) -> None:
        advance(log)
        reads.by_step.append([])

    def begin_readback(copy: readback.Readback, values: Tensor) -> None:
        begin(copy, values)
        made_in[id(copy)] = len(reads.by_step)

    def read(copy: readback.Readback) -> Any:
        if made_in[id(copy)] == len(reads.by_step):
            reads.count("Readback.tolist")
        return tolist(copy)

    Batch.to, MetricsLog.advance = to_device, next_step  # type: ignore[method-assign]
    readback.Readback.__init__, readback.Readback.tolist = begin_readback, read  # type: ignore[method-assign]
    training = Pretraining(parse(RunConfig, words), join(), RunHistory())
    reads.put_on_device([list(training.engine.module.parameters()), list(training.engine.module.buffers())])
    with Operations(reads), Methods(reads):
        training._train()
    report.write_text(json.dumps(reads.by_step))
