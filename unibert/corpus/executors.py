"""Where the tasks of a build run: in this process, in a pool of processes, or on the other MPI ranks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from typing import Protocol, TypeVar, cast

from tqdm import tqdm

from unibert.corpus.failures import KILLED, Failure, attempt, cause, failed_tasks
from unibert.corpus.manifest import Manifest
from unibert.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SECONDS_BETWEEN_LINES = 30
_TRIES, _SECONDS_BETWEEN_TRIES = 3, 1.0
_MAX_BREAKS = 8  # of a pool in a row


_numbers: list[int] = []
"""The number of this process in its pool, if it is in one."""


class Workers(Protocol):
    """Processes that do tasks."""

    def outcomes(
        self, function: Callable[[Task], Result], tasks: Mapping[int, Task]
    ) -> Iterator[tuple[int, Result | Failure]]:
        """Call the function with each task; yield the tasks' numbers and what it returns, in the order of their end.

        A task that kills its process has a `Failure`.
        """


def write_corpus(
    write: Callable[[Workers], Manifest], corpus_dir: str | os.PathLike[str], workers: int | None
) -> Manifest:
    """Call ``write`` with the workers of this start: this process, a pool of processes, or the other MPI ranks.

    Under MPI, rank 0 calls it, and the others serve it until the corpus is complete.

    Returns:
        The manifest of the corpus that ``write`` has written into ``corpus_dir``, on every rank.

    Raises:
        UserError: on the other ranks, if rank 0 has failed; see also `mpi_ranks`.
    """
    if not started_under_mpi():
        with local_workers(workers) as here:
            return write(here)
    with mpi_ranks() as ranks:
        if ranks is not None:
            return write(ranks)
    try:
        return Manifest.load(corpus_dir)
    except UserError as error:
        raise UserError("rank 0 could not write the corpus; its message says why") from error


def run_tasks(
    workers: Workers,
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    title: str,
    name: Callable[[Task], str],
    done: int = 0,
) -> Iterator[tuple[int, Result]]:
    """Yield the tasks' numbers and results in the order in which they end; show progress on stderr.

    A task that fails is named on stderr and tried again after the others, twice, unless it is a user's mistake.

    Args:
        workers: who does the tasks.
        function: does one.
        tasks: in the order in which they begin.
        title: what they do, for people.
        name: names a task in messages.
        done: number of tasks that were done before.

    Raises:
        UserError: after all other tasks, naming those that have failed.
        OSError: at once, if the disk is full.
    """
    left = dict(enumerate(tasks))
    failed: dict[int, Failure] = {}
    with _progress(title, done, done + len(tasks)) as advance:
        for tries_left in reversed(range(_TRIES)):
            for number, outcome in workers.outcomes(partial(attempt, function), left):
                if not isinstance(outcome, Failure):
                    failed.pop(number, None)
                    advance()
                    yield number, outcome
                elif outcome.disk_error is not None:
                    raise OSError(outcome.disk_error, os.strerror(outcome.disk_error))
                else:
                    if number not in failed and done + len(tasks) > 1:
                        print(f"{title}: {cause(name(tasks[number]), outcome)}", file=sys.stderr, flush=True)
                    failed[number] = outcome
            left = {number: tasks[number] for number, failure in failed.items() if failure.may_pass}
            if not left or not tries_left:
                break
            time.sleep(_SECONDS_BETWEEN_TRIES)
    if failed:
        causes = [cause(name(tasks[number]), failure) for number, failure in sorted(failed.items())]
        raise failed_tasks(title, done + len(tasks), causes)


@contextmanager
def _progress(title: str, done: int, total: int) -> Iterator[Callable[[], object]]:
    """Yield a function to call after each task: it moves a bar on a terminal, and prints lines elsewhere."""
    if sys.stderr.isatty():
        with tqdm(initial=done, total=total, desc=title, unit="task") as bar:
            yield bar.update
        return
    last = time.monotonic()

    def advance() -> None:
        nonlocal done, last
        done += 1
        if done == total or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{title}: {done}/{total}", file=sys.stderr, flush=True)

    yield advance


def process_number() -> int:
    """Return this process's number among those of its machine that share the tasks, from 0."""
    local_ranks = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
    return _numbers[0] if _numbers else int(next((os.environ[name] for name in local_ranks if name in os.environ), 0))


@contextmanager
def local_workers(number: int | None) -> Iterator[Workers]:
    """Yield a pool of ``number`` processes, by default one per CPU, or this process if there is only one."""
    number = number or _available_cpus()
    if number == 1:
        yield _ThisProcess()
        return
    pool = _Pool(number)
    try:
        yield pool
    except BaseException:
        pool.stop()
        raise
    pool.close()


class _ThisProcess:
    def outcomes(
        self, function: Callable[[Task], Result], tasks: Mapping[int, Task]
    ) -> Iterator[tuple[int, Result | Failure]]:
        for number, task in tasks.items():
            yield number, function(task)


class _Pool:
    """Processes that are started anew when one of them was killed, which ends them all."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._breaks = 0
        self._start()

    def outcomes(
        self, function: Callable[[Task], Result], tasks: Mapping[int, Task]
    ) -> Iterator[tuple[int, Result | Failure]]:
        waiting, suspects = deque(tasks.items()), []
        while waiting:
            suspects += yield from self._share(function, waiting, self._size)
        for suspect in suspects:
            if (yield from self._share(function, deque([suspect]), 1)):
                yield suspect[0], KILLED

    def _share(
        self, function: Callable[[Task], Result], waiting: deque[tuple[int, Task]], at_once: int
    ) -> Generator[tuple[int, Result], None, list[tuple[int, Task]]]:
        """Take tasks until none waits or a process is killed; return those that were at work then.

        No more are taken at once than processes can work on, so that few are suspected.
        """
        running: dict[Future[Result], tuple[int, Task]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running[self._executor.submit(function, waiting[0][1])] = waiting[0]
                    waiting.popleft()
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(ended, key=lambda future: future.exception() is not None):
                    result = future.result()
                    self._breaks = 0
                    yield running.pop(future)[0], result
        except BrokenProcessPool as error:
            self._breaks += 1
            if self._breaks == _MAX_BREAKS:
                raise UserError(
                    f"workers: processes were killed {_MAX_BREAKS} times before any had done its task, probably "
                    "because memory ran out; use fewer, and the same command goes on"
                ) from error
            self.stop()
            self._start()
            return list(running.values())
        return []

    def _start(self) -> None:
        # Fresh interpreters: a fork would copy locks that threads of the caller's packages hold.
        context = multiprocessing.get_context("spawn")
        numbers = context.SimpleQueue()
        for number in range(self._size):
            numbers.put(number)
        self._watched, self._lifeline = context.Pipe(duplex=False)
        initial = (numbers, self._watched)
        self._executor = ProcessPoolExecutor(self._size, context, initializer=_initialize_worker, initargs=initial)

    def close(self) -> None:
        """End the processes, which are not at work."""
        self._executor.shutdown()
        self.stop()

    def stop(self) -> None:
        """End the processes, also those at work."""
        self._lifeline.close()
        self._executor.shutdown(cancel_futures=True)
        self._watched.close()


def _initialize_worker(numbers: SimpleQueue[int], lifeline: Connection) -> None:
    """Take a number, leave Ctrl-C to the parent process, and end when it closes its end of the pipe, or is killed."""
    _numbers.append(numbers.get())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, args=(lifeline,), daemon=True).start()


def _exit_after_parent(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: the CPUs that Slurm or a container allows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def mpi_ranks() -> Iterator[Workers | None]:
    """Yield the other ranks on rank 0; they serve it until it ends, then get None.

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
        yield None if executor is None else _Ranks(cast("Executor", executor), MPI.COMM_WORLD.size - 1)


class _Ranks:
    def __init__(self, executor: Executor, number: int) -> None:
        self._executor, self._number = executor, number

    def outcomes(
        self, function: Callable[[Task], Result], tasks: Mapping[int, Task]
    ) -> Iterator[tuple[int, Result | Failure]]:
        waiting = iter(tasks.items())
        running: dict[Future[Result], int] = {}
        # No more at once than ranks, so that the build ends soon after an error.
        while True:
            for number, task in islice(waiting, self._number - len(running)):
                running[self._executor.submit(function, task)] = number
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield running.pop(future), future.result()


def started_under_mpi() -> bool:
    """Return whether mpirun (Open MPI, MPICH) or srun started several processes."""
    sizes = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
    return any(int(os.environ.get(name, 1)) > 1 for name in sizes)


def coordinates() -> bool:
    """Return whether this process leads a start: rank 0 under MPI, else every process that is no worker."""
    ranks = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
    return not started_under_mpi() or int(next((os.environ[name] for name in ranks if name in os.environ), 0)) == 0
