"""The processes of a run that is under way."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from unibert.launcher import free_port


def placement(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables by which a launcher on this machine tells a rank its place."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def start_without_launcher(
    words: list[str], ranks: int, output: Path, preparations: dict[int, Callable[[], None]] | None = None
) -> list[subprocess.Popen[bytes]]:
    """The ranks of ``unibert WORDS``, in order, which nobody ends when one of them does.

    What they print is added to ``output``; ``preparations`` are called in the processes of some ranks.
    """
    port = free_port()
    with output.open("ab") as file:
        return [
            subprocess.Popen(
                [sys.executable, "-m", "unibert", *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **placement(rank, ranks, port)},
                preexec_fn=(preparations or {}).get(rank),
            )
            for rank in range(ranks)
        ]


def train_each(folder: Path, run_file: Path, runs: list[dict[str, Any]], timeout: float) -> None:
    """Run `tests.training.ds_config_runs` on ``runs``, which leaves its reports in ``folder``, to a good end."""
    (folder / "runs.json").write_text(json.dumps(runs))
    words = [sys.executable, "-m", "tests.training.ds_config_runs", folder, run_file, folder / "runs.json"]
    done = subprocess.run(
        words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr


def fork_ranks(words: list[str], ranks: int, output: Path) -> list[BaseProcess]:
    """As :func:`start_without_launcher`, but ranks are forked from a process that has imported all that they import,
    which saves them most of their start."""
    from unibert.cli import main

    port = free_port()
    places = [placement(rank, ranks, port) if ranks > 1 else {} for rank in range(ranks)]
    return [fork(output, main, words, **place) for place in places]


def fork(output: Path, work: Callable[..., object], *arguments: object, **variables: str) -> BaseProcess:
    """``work(*arguments)`` in a process on one thread, whose prints are added to ``output``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.preloaded"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    process = context.Process(target=_forked, args=(environment, output, work, arguments))
    process.start()
    return process


def statuses(ranks: list[BaseProcess], timeout: float) -> list[int]:
    """The exit statuses of ranks that end within ``timeout`` seconds; the others are killed."""
    deadline = time.monotonic() + timeout
    for rank in ranks:
        rank.join(max(0, deadline - time.monotonic()))
    hung = [number for number, rank in enumerate(ranks) if rank.is_alive()]
    for number in hung:
        ranks[number].kill()
    assert not hung, f"ranks {hung} have not ended in {timeout:g} s"
    return [rank.exitcode for rank in ranks]


def _forked(
    environment: dict[str, str], output: Path, work: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    os.environ.clear()
    os.environ |= environment
    with output.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    work(*arguments)


def wait_for_line(path: Path, step: int, timeout: float = 240) -> None:
    """Until the metrics file ``path`` has lines of ``step`` steps."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count('"loss"') >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} has no {step} steps after {timeout} s")


def rank_process(launcher: int, rank: int) -> int:
    """The process id of a rank that the launcher with this process id has started."""
    for folder in Path("/proc").iterdir():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            # Neither the launcher's own processes nor a rank's loaders, which have the same words and variables.
            ours = os.getpgid(int(folder.name)) == launcher and b"deepspeed.launcher.launch" in (
                Path("/proc") / parent / "cmdline"
            ).read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if ours and b"pretrain" in words and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")
