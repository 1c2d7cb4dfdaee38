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
from multiprocessing.queues import SimpleQueue
from typing import TypeVar, cast

from tqdm import tqdm

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SECONDS_BETWEEN_LINES = 30


_numbers: list[int] = []
"""The number of this process in its pool, if it is in one."""


def write_corpus(
    write: Callable[[Executor | None], Manifest], corpus_dir: str | os.PathLike[str], workers: int | None
) -> Manifest:
    """Call ``write`` with the executor of this start: a pool of processes, the other MPI ranks, or None.

    Under MPI, rank 0 calls it, and the others serve it until the corpus is complete.

    Returns:
        The manifest of the corpus that ``write`` has written into ``corpus_dir``, on every rank.

    Raises:
        UserError: on the other ranks, if rank 0 has failed; see also `process_executor` and `mpi_executor`.
    """
    if not started_under_mpi():
        with process_executor(workers) as executor:
            return write(executor)
    with mpi_executor() as executor:
        if executor is not None:
            return write(executor)
    try:
        return Manifest.load(corpus_dir)
    except UserError as error:
        raise UserError("rank 0 could not write the corpus; its message says why") from error


def process_number() -> int:
    """Return this process's number among those of its machine that share the tasks, from 0."""
    local_ranks = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
    return _numbers[0] if _numbers else int(next((os.environ[name] for name in local_ranks if name in os.environ), 0))


@contextmanager
def process_executor(workers: int | None) -> Iterator[Executor | None]:
    """Yield a pool of processes, or None if there is only one worker."""
    workers = workers or _available_cpus()
    if workers == 1:
        yield None
        return
    # Fresh interpreters: a fork would copy locks that threads of the caller's packages hold.
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(workers, context, initializer=_initialize_worker, initargs=(numbers,)) as executor:
        try:
            yield executor
        except BrokenProcessPool as error:
            raise UserError("workers: a process was killed, probably because memory ran out; use fewer") from error
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _initialize_worker(numbers: SimpleQueue[int]) -> None:
    """Take a number, leave Ctrl-C to the parent process, and end when it ends: if killed, it could not notify its
    workers."""
    _numbers.append(numbers.get())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: the CPUs that Slurm or a container allows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def mpi_executor() -> Iterator[Executor | None]:
    """Yield an executor over the other ranks on rank 0; the others serve it until it closes, then get None.

    Raises:
        UserError: if there is no MPI, or the launcher and MPI disagree about the number of ranks.
    """
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "started as several tasks, which needs mpi4py and an MPI library; install unibert[mpi], or start one task"
        ) from error
    if MPI.COMM_WORLD.size == 1:
        raise UserError("started as several tasks, but MPI sees one; give srun the --mpi that this MPI supports")
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        # mpi4py's stubs give the type of the context manager instead of the Executor's.
        yield cast("Executor | None", executor)


def started_under_mpi() -> bool:
    """Return whether mpirun (Open MPI, MPICH) or srun started several processes."""
    sizes = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
    return any(int(os.environ.get(name, 1)) > 1 for name in sizes)


def coordinates() -> bool:
    """Return whether this process leads a start: rank 0 under MPI, else every process that is no worker."""
    ranks = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
    return not started_under_mpi() or int(next((os.environ[name] for name in ranks if name in os.environ), 0)) == 0


def run_tasks(
    executor: Executor | None, function: Callable[[Task], Result], tasks: Sequence[Task], title: str
) -> Iterator[Result]:
    """Yield results in the order of the tasks; show progress on stderr: a bar on a terminal, lines elsewhere."""
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
