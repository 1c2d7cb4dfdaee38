"""A process that measures one case: ``python -m unibert.bench.losses.worker JOB.json ROWS.jsonl``.

A provider that crashes its process or breaks the CUDA context thus loses only its own row, and on the CPU the memory
that a provider needs can only be measured in a new process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from unibert.bench.losses.case import Case
from unibert.bench.losses.inputs import make_inputs
from unibert.bench.losses.measure import DeviceLostError, measure_case
from unibert.bench.losses.memory import measured_peak
from unibert.bench.losses.providers import providers_of

EXIT_DEVICE_LOST = 3
WARMUP_ROWS = 32


@dataclass(kw_only=True)
class Job:
    """The job of a worker."""

    task: Literal["case", "memory", "matmul"]
    """A whole case, one provider's memory on the CPU, or the device's matmul peak."""
    case: dict[str, Any] = field(default_factory=dict)
    """Fields of `Case`."""
    providers: list[str] = field(default_factory=list)
    device: str = "cpu"
    threads: int = 1
    repeats: int = 3
    error_rows: int = 128
    seconds: float = 1e9
    option: str = ""
    """For ``memory``: the fastest option."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main(job_file: str, rows_file: str) -> None:
    """Do the job; write a JSON line for each row, and a line {"started": name} before each provider."""
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    torch.set_num_threads(job.threads)
    with Path(rows_file).open("a", encoding="utf-8") as stream:

        def write(row: dict[str, Any]) -> None:
            stream.write(json.dumps(row) + "\n")
            stream.flush()

        if job.task == "matmul":
            write({"tflops": matmul_peak(job.device)})
            return
        case = Case(**job.case)
        providers = [each for each in providers_of(case.loss) if each.name in job.providers]
        if job.task == "memory":
            write(_memory(case, providers[0].name, job))
            return
        try:
            for row in measure_case(
                case,
                providers,
                device=job.device,
                error_rows=job.error_rows,
                repeats=job.repeats,
                seconds=job.seconds,
                on_start=lambda name: write({"started": name}),
            ):
                write(row)
        except DeviceLostError:
            stream.flush()
            # A normal exit would wait for the broken context.
            os._exit(EXIT_DEVICE_LOST)


def matmul_peak(device: str) -> float:
    """Best TFLOP/s of several square products: bf16 on CUDA, fp32 on the CPU with the current number of threads."""
    if torch.device(device).type == "cuda":
        from triton.testing import do_bench

        best = 0.0
        for size in (4096, 8192, 16384):
            left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
            best = max(best, 2e-9 * size**3 / do_bench(lambda a=left, b=right: a @ b, quantiles=[0.5]))
        return best
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2e-12 * size**3 / min(times)


def _memory(case: Case, name: str, job: Job) -> dict[str, Any]:
    (provider,) = (each for each in providers_of(case.loss) if each.name == name)
    inputs = make_inputs(case, job.device)
    # Libraries are loaded and thread pools started before the measurement. Compiled code needs all rows for that.
    compiled = name.startswith("torch.compile")
    warmup = inputs if compiled else inputs.first_rows(min(WARMUP_ROWS, case.rows))
    candidates = provider.candidates(inputs)
    function = candidates.get(job.option, next(iter(candidates.values())))
    first = function if compiled else next(iter(provider.candidates(warmup).values()))
    first().backward()
    del first, warmup
    return measured_peak(lambda: function().backward(), inputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
