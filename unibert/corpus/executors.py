"""Where the tasks of a build run: in this process, in a pool of processes, or on the other MPI ranks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar, cast

from tqdm import tqdm

from unibert.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SECONDS_BETWEEN_LINES = 30


@contextmanager
def process_executor(workers: int | None) -> Iterator[Executor | None]:
    """A pool of processes, or None where one worker makes a pool needless."""
    workers = workers or _available_cpus()
    if workers == 1:
        yield None
        return
    # Fresh interpreters: a fork would copy the threads' locks of whatever the caller has imported.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_follow_parent) as executor:
        try:
            yield executor
        except BrokenProcessPool as error:
            raise UserError("workers: a process was killed, probably for want of memory; use fewer workers") from error
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _follow_parent() -> None:
    """Leave Ctrl-C to the leading process, and end when it ends: a killed one could not tell its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: what Slurm or a container has left of the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def mpi_executor() -> Iterator[Executor | None]:
    """On rank 0 an executor over the other ranks; they serve it until it closes, then get None.

    Raises:
        UserError: if there is no MPI, or if the launcher and MPI disagree about how many we are.
    """
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "started as several tasks, which needs mpi4py and an MPI library: install unibert[mpi], or start one task"
        ) from error
    if MPI.COMM_WORLD.size == 1:
        raise UserError("started as several tasks, but MPI sees one: give srun the --mpi that this MPI understands")
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        # The stubs of mpi4py name the context manager where it hands out an Executor.
        yield cast("Executor | None", executor)


def started_under_mpi() -> bool:
    """Whether a launcher started several of us: mpirun (Open MPI, MPICH) or srun."""
    sizes = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
    return any(int(os.environ.get(name, 1)) > 1 for name in sizes)


def run_tasks(
    executor: Executor | None, function: Callable[[Task], Result], tasks: Sequence[Task], title: str
) -> Iterator[Result]:
    """Results in the order of the tasks, with progress on standard error: a bar on a terminal, lines elsewhere."""
    results = map(function, tasks) if executor is None else executor.map(function, tasks)
    if sys.stderr.isatty():
        yield from tqdm(results, total=len(tasks), desc=title, unit="task")
        return
    last = time.monotonic()
    for number, result in enumerate(results, start=1):
        if number == len(tasks) or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{title}: {number}/{len(tasks)}", file=sys.stderr, flush=True)
        yield result
