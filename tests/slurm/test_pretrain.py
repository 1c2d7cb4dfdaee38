"""``sbatch slurm/pretrain.sh`` on two nodes completes despite everything that a cluster does to a job."""

import re
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.lab import Lab, wait_until
from tests.training.compare import lines_without_timing
from unibert.training.metrics_file import read_metrics

SHORT = "--training.tokens=81920"  # 40 steps
INTERRUPTED = ("--training.tokens=409600", "--training.checkpoint_every=20")  # 200 steps
RANKS = "-m unibert pretrain"


def submit(lab: Lab, run_file: Path, run_dir: Path, *overrides: str, options: tuple[str, ...] = ()) -> str:
    return lab.submit(*options, "-N2", "slurm/pretrain.sh", str(run_file), f"--run_dir={run_dir}", *overrides)


def wait_for_step(lab: Lab, job: str, run_dir: Path, step: int) -> None:
    def reached() -> bool:
        path = run_dir / "metrics.jsonl"
        return path.exists() and any(line["step"] >= step for line in read_metrics(path).records[-1:])

    wait_until(reached, 300, lambda: f"step {step} of job {job} ({lab.state(job)}): {lab.log(job)[-2000:]}")


def last_step(run_dir: Path) -> int:
    return read_metrics(run_dir / "metrics.jsonl").records[-1]["step"]


def wait_for_restart(lab: Lab, job: str, number: int) -> None:
    """Wait until the job is requeued for this restart, then let it start."""
    wait_until(lambda: lab.restarts(job) >= number, 300, lambda: f"{lab.state(job)}: {lab.log(job)[-2000:]}")
    lab.start_at_once(job)


def rank_pid(lab: Lab, job: str, node: str) -> int:
    """Return the process id, in the lab's namespace, of a job's only rank on a node."""

    def pids() -> list[int]:
        variables = {pid: lab.run("cat", f"/proc/{pid}/environ", check=False) for pid in lab.pids(RANKS)}
        marks = (f"SLURMD_NODENAME={node}", f"SLURM_JOB_ID={job}", "SLURM_PROCID")
        return [pid for pid, text in variables.items() if all(mark in text for mark in marks)]

    wait_until(pids, 300)
    # Its loader processes have the same command line and larger ids.
    return min(pids())


@pytest.fixture(scope="session")
def undisturbed(lab: Lab, run_file: Path) -> Path:
    """The run folder of a job without interruptions."""
    run_dir = run_file.with_name("undisturbed")
    job = submit(lab, run_file, run_dir, *INTERRUPTED)
    assert lab.wait(job) == "COMPLETED", lab.log(job)
    assert lab.restarts(job) == 0
    return run_dir


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_preemption_time_limit_kill_and_lost_node_do_not_change_the_run(
    lab, run_file, undisturbed, slow_network, tmp_path
):
    run_dir = tmp_path / "run"
    # Slurm takes its time; a slow network makes the steps last as long without keeping the processors busy.
    options = ("--signal=B:USR1@60", "--export=ALL,UNIBERT_LEAST_GBPS=0")
    job = submit(lab, run_file, run_dir, *INTERRUPTED, options=options)
    log = lab.folder / f"{job}.log"

    wait_for_step(lab, job, run_dir, 5)
    urgent = lab.submit("-p", "high", "-N2", "--exclusive", "--wrap", "srun hostname")
    wait_for_restart(lab, job, 1)
    assert lab.wait(urgent) == "COMPLETED"
    assert log.read_text().count("SIGUSR1 received: stopped after step") == 1
    at_preemption = last_step(run_dir)

    wait_for_step(lab, job, run_dir, at_preemption + 5)
    # From now on, for the job may have run for any time; Slurm warns it within half a minute, a minute before the end.
    lab.run("scontrol", "update", f"JobId={job}", "EndTime=now+90")
    wait_until(lambda: lab.restarts(job) >= 2, 300, lambda: lab.log(job)[-2000:])
    lab.run("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")
    lab.start_at_once(job)
    assert log.read_text().count("SIGUSR1 received: stopped after step") == 2
    assert log.read_text().count("ended with status 75") == 2
    at_limit = last_step(run_dir)

    wait_for_step(lab, job, run_dir, at_limit + 5)
    lab.kill(rank_pid(lab, job, "n2"), signal.SIGKILL)
    wait_for_restart(lab, job, 3)
    at_kill = last_step(run_dir)

    wait_for_step(lab, job, run_dir, at_kill + 5)
    lab.kill_node("n2")
    wait_until(lambda: lab.restarts(job) >= 4, 300, lambda: lab.log(job)[-2000:])
    assert last_step(run_dir) < 200
    # The lost node's rank exits when it notices that the others are gone.
    wait_until(lambda: not lab.pids(RANKS), 120)
    lab.start_node("n2")
    lab.start_at_once(job)

    assert lab.wait(job, 600) == "COMPLETED", lab.log(job)
    assert lines_without_timing(run_dir) == lines_without_timing(undisturbed)
    print(f"interrupted at {at_preemption}, {at_limit}, {at_kill} and by the node; {lab.restarts(job)} restarts")


def test_a_short_run_completes_and_removes_its_cache(lab, run_file, tmp_path):
    job = submit(lab, run_file, tmp_path / "run", SHORT)
    assert lab.wait(job) == "COMPLETED", lab.log(job)
    assert "unibert: preflight: 2 nodes, 2 ranks" in lab.log(job)
    assert last_step(tmp_path / "run") == 40
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert lab.restarts(job) == 0
    assert not (lab.folder / f"unibert-{job}").exists()


@pytest.mark.slow
def test_a_mistake_is_not_retried(lab, run_file, tmp_path):
    job = submit(lab, run_file, tmp_path / "run", "--optimizer.learning_rate=1e30")
    assert lab.wait(job) == "FAILED"
    assert lab.job(job)["ExitCode"] == "1:0"
    assert lab.restarts(job) == 0
    assert "unibert: error: " in lab.log(job)


@pytest.mark.slow
def test_a_mistake_of_a_single_rank_is_not_retried(lab, run_file, tmp_path):
    run_dir = tmp_path / "run"
    job = submit(lab, run_file, run_dir, "--stream.num_workers=1", "--training.tokens=2000000")
    wait_for_step(lab, job, run_dir, 5)
    rank = rank_pid(lab, job, "n2")
    children = map(int, lab.run("cat", f"/proc/{rank}/task/{rank}/children").split())
    [loader] = set(children) & set(lab.pids(RANKS))
    lab.kill(loader, signal.SIGKILL)
    assert lab.wait(job) == "FAILED"
    assert (lab.job(job)["ExitCode"], lab.restarts(job)) == ("1:0", 0), lab.log(job)
    assert re.findall("unibert: error: .*", lab.log(job)) == [
        "unibert: error: rank 1: a loader process was killed, most likely because memory ran out; lower "
        "stream.num_workers or stream.window_shards"
    ]


def environment(folder: Path, program: str) -> str:
    """Return an option that makes a job use a Python which only runs this shell command."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    return f"--export=ALL,UNIBERT_VENV={folder},UNIBERT_MAX_RESTARTS=1"


@pytest.mark.slow
def test_a_program_that_cannot_run_is_not_retried(lab, run_file, tmp_path):
    option = environment(tmp_path, "exec /nowhere/python")
    job = submit(lab, run_file, tmp_path / "run", options=(option,))
    assert lab.wait(job) == "FAILED"
    assert lab.job(job)["ExitCode"] == "127:0"
    assert lab.restarts(job) == 0


@pytest.mark.slow
def test_a_preflight_that_crashes_is_retried_as_often_as_allowed(lab, run_file, tmp_path):
    job = submit(lab, run_file, tmp_path / "run", options=(environment(tmp_path, "kill -SEGV $$"),))
    wait_for_restart(lab, job, 1)
    assert lab.wait(job) == "FAILED"
    assert lab.restarts(job) == 1
    assert "preflight crashed after 1 restarts (UNIBERT_MAX_RESTARTS); not requeued" in lab.log(job)


@pytest.mark.slow
def test_on_a_site_without_requeue_a_job_says_how_to_continue(lab, run_file, tmp_path):
    run_dir = tmp_path / "run"
    options = ("--export=ALL,UNIBERT_REQUEUE=no,UNIBERT_SRUN_ARGS=--label",)
    job = submit(lab, run_file, run_dir, options=options)
    wait_for_step(lab, job, run_dir, 5)
    lab.run("scancel", "--signal=USR1", "--batch", job)
    assert lab.wait(job) == "FAILED"
    assert (lab.job(job)["ExitCode"], lab.restarts(job)) == ("75:0", 0)
    log = lab.log(job)
    assert "submit the same command again to continue (UNIBERT_REQUEUE=no)" in log
    assert re.search(r"^0: unibert: preflight: 2 nodes", log, re.MULTILINE)  # srun --label


@pytest.mark.slow
def test_scancel_saves_a_checkpoint_and_ends_the_job(lab, run_file, tmp_path):
    run_dir = tmp_path / "run"
    job = submit(lab, run_file, run_dir, "--training.checkpoint_every=100000")
    wait_for_step(lab, job, run_dir, 5)
    lab.run("scancel", job)
    assert lab.wait(job) == "CANCELLED"
    wait_until(lambda: not lab.pids(RANKS), 120)
    assert len(list((run_dir / "checkpoints").glob("step-*"))) == 1
    time.sleep(3)
    assert (lab.state(job), lab.restarts(job)) == ("CANCELLED", 0)


@pytest.mark.slow
def test_a_hanging_rank_is_named_and_the_run_continues(lab, run_file, tmp_path):
    run_dir = tmp_path / "run"
    # Longer than the ranks of a busy machine take to build their engines, one of which may wait for the other.
    job = submit(lab, run_file, run_dir, "--training.collective_timeout_minutes=0.4", "--training.tokens=204800")
    wait_for_step(lab, job, run_dir, 5)
    lab.kill(rank_pid(lab, job, "n2"), signal.SIGSTOP)
    stopped = time.monotonic()
    # The timeout, the query of the other ranks, and Slurm's end of the job; without the timeout, 15 minutes.
    wait_until(lambda: lab.restarts(job) >= 1, 300, lambda: lab.log(job)[-2000:])
    took = time.monotonic() - stopped
    # Slurm wakes the stopped rank to end it, and it may notice that the others are gone.
    sentence, *_ = re.findall("unibert: error: .*", lab.log(job))
    assert "no collective has ended for 24 s: rank 1 (n2) does not respond" in sentence
    lab.start_at_once(job)
    assert not lab.pids(RANKS)
    assert lab.wait(job) == "COMPLETED", lab.log(job)
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl").records] == [*range(1, 101), 100]
    print(f"took {took:.1f} s: {sentence}")


@pytest.mark.slow
def test_restarts_without_progress_are_limited(lab, run_file, tmp_path):
    job = submit(lab, run_file, tmp_path / "run", "--training.restarts_without_progress=1")
    for number in (1, 2):
        lab.kill(rank_pid(lab, job, "n2"), signal.SIGKILL)
        wait_for_restart(lab, job, number)
    assert lab.wait(job) == "FAILED"
    assert lab.restarts(job) == 2
    assert "restarted 2 times without a checkpoint after step 0" in lab.log(job)
