"""``unibert study``: do what is left of a study, in several processes at once, and write its report."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from unibert.errors import UserError
from unibert.files import write_atomically
from unibert.stopping import EXIT_STOPPED
from unibert.study.config import Study, read_study
from unibert.study.report import write_report
from unibert.study.work import Item, Job, jobs_of

_LAST_LINES = 3


def run_study(file: Path, *, processes: int, part: str | None) -> bool:
    """Run the commands of a study that are not done, then write the report if all are.

    Args:
        file: study file.
        processes: number of commands at once.
        part: ``K/N`` takes the jobs K, K + N, … from 0 only; N processes or array tasks share the study so.

    Returns:
        whether all commands of this part have ended well.

    Raises:
        UserError: for a mistake in the file.
    """
    study = read_study(file)
    jobs = _part(jobs_of(study), part)
    _keep_file(file, study)
    print(_status(jobs), flush=True)
    failed = _Runner(processes, jobs).run()
    for item in failed:
        print(f"unibert: {item} has failed: {_last_line(item.log)} ({item.log})", file=sys.stderr)
    if not failed and all(item.done for job in jobs_of(study) for item in job.items):
        print(f"report   {write_report(study)}")
    elif not failed:
        print("The rest of the study is not done; when it is, `unibert study report` writes the report.")
    return not failed


class _Runner:
    def __init__(self, processes: int, jobs: Sequence[Job]) -> None:
        self._processes = processes
        self._jobs = jobs
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._failed: list[Item] = []
        threads = max(1, (os.cpu_count() or 1) // processes)
        # A training is a run of its own, and no rank of the Slurm job that the study is in.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        # Each command would otherwise take all cores.
        self._environment = {"OMP_NUM_THREADS": str(threads), **inherited, "PYTHONUNBUFFERED": "1"}

    def run(self) -> list[Item]:
        """Run the jobs; return the commands that have failed."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        previous = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            with ThreadPoolExecutor(self._processes) as pool:
                list(pool.map(self._run_job, self._jobs))
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._stopped:
            print("unibert: the study has stopped; the same command goes on", file=sys.stderr, flush=True)
            sys.exit(EXIT_STOPPED)
        return self._failed

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        for process in list(self._running):
            # A training saves a checkpoint, an evaluation has kept what it has.
            process.send_signal(signal.SIGTERM)

    def _run_job(self, job: Job) -> None:
        with _locked(job.lock) as lock:
            if lock is None:
                print(f"{job.lock.parent}: another process is at work on it", flush=True)
                return
            for item in job.items:
                if item.done:
                    continue
                if self._stopped or not self._run_item(item, lock):
                    return

    def _run_item(self, item: Item, lock: int) -> bool:
        item.log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with item.log.open("ab") as log:
            # In a group of its own, so that Ctrl-C reaches it once, through this process.
            process = subprocess.Popen(
                item.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
                # If this process is killed, the command goes on, and the job stays locked until it ends.
                pass_fds=[lock],
            )
            self._running.add(process)
            if self._stopped:
                process.send_signal(signal.SIGTERM)
            process.wait()
            self._running.discard(process)
        if self._stopped and not item.done:
            return False
        with self._lock:
            if process.returncode != 0 or not item.done:
                self._failed.append(item)
                return False
            print(f"{item}: {time.monotonic() - start:.0f} s. {_status(self._jobs)}", flush=True)
        return True


def _part(jobs: Sequence[Job], part: str | None) -> list[Job]:
    if part is None:
        return list(jobs)
    try:
        index, number = map(int, part.split("/"))
        if not 0 <= index < number:
            raise ValueError
    except ValueError:
        raise UserError(f"part: must be K/N with K from 0 to N - 1, got {part}") from None
    return list(jobs)[index::number]


def _keep_file(file: Path, study: Study) -> None:
    """Copy the study file into the study's folder, where the report finds it."""
    source = file / "study.yaml" if file.is_dir() else file
    try:
        study.output.mkdir(parents=True, exist_ok=True)
        if source.resolve() != (study.output / "study.yaml").resolve():
            write_atomically(study.output / "study.yaml", source.read_bytes())
    except OSError as error:
        raise UserError(f"output: {study.output} cannot be written ({error.strerror})") from error


def _status(jobs: Sequence[Job]) -> str:
    """Return a line that says what is done and what is left."""
    items = [item for job in jobs for item in job.items]
    left = Counter(item.name for item in items if not item.done)
    done = len(items) - left.total()
    if not left:
        return f"{done} of {len(items)} done"
    return f"{done} of {len(items)} done; left: {', '.join(f'{count} × {name}' for name, count in left.items())}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else "it has printed nothing"


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Lock a file while the block runs; yield its descriptor, or None if another process has locked it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()
