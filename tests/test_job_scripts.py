"""``unibert slurm`` writes scripts into a folder of the user, from which they work."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.refusals import refused
from unibert.cli import main

SHIPPED = Path(__file__).parents[1] / "slurm"
NAMES = {
    "array.sh",
    "bench.sh",
    "corpus.sh",
    "environment.sh",
    "evaluate.sh",
    "pretrain.sh",
    "site.env.example",
    "study.sh",
    "teach.sh",
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The current folder of the commands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_scripts_are_those_that_ship(here, capsys):
    main(["slurm"])
    printed = capsys.readouterr().out
    assert {path.name for path in (here / "slurm").iterdir()} == NAMES
    for name in NAMES:
        assert (here / "slurm" / name).read_bytes() == (SHIPPED / name).read_bytes()
        executable = name.endswith(".sh") and name != "environment.sh"
        assert os.access(here / "slurm" / name, os.X_OK) == executable
        assert f"written    slurm/{name}" in printed
    assert "Submit from this folder:\n\n    sbatch --gpus-per-node=8" in printed
    assert "slurm/pretrain.sh small --corpus corpus --run_dir runs/small" in printed


def test_scripts_are_executable_only_for_those_who_may_read_them(here):
    mask = os.umask(0o027)
    try:
        main(["slurm"])
    finally:
        os.umask(mask)
    modes = {name: (here / "slurm" / name).stat().st_mode & 0o777 for name in ("pretrain.sh", "environment.sh")}
    assert modes == {"pretrain.sh": 0o750, "environment.sh": 0o640}


def test_writing_the_same_scripts_again_changes_nothing(here, capsys):
    main(["slurm", "--output", "jobs"])
    (here / "jobs" / "site.env").write_text("export SBATCH_ACCOUNT=mine\n")
    before = {path: path.stat().st_mtime_ns for path in (here / "jobs").iterdir()}
    capsys.readouterr()
    main(["slurm", "--output", "jobs"])
    assert capsys.readouterr().out.count("unchanged  jobs/") == len(NAMES)
    assert {path: path.stat().st_mtime_ns for path in (here / "jobs").iterdir()} == before


def test_changed_scripts_are_replaced_only_on_demand(here, capsys):
    main(["slurm", "jobs"])
    site_env = here / "jobs" / "site.env"
    site_env.write_text("export SBATCH_ACCOUNT=mine\n")
    removed, script = here / "jobs" / "evaluate.sh", here / "jobs" / "pretrain.sh"
    removed.unlink()
    written = script.read_text()
    script.write_text(written + "echo mine\n")
    capsys.readouterr()
    printed, sentence = refused(capsys, "slurm", "jobs")
    assert "jobs/pretrain.sh: differs from what would be written" in sentence
    assert "or give --overwrite (site.env is never changed)" in sentence
    assert printed == ""
    assert not removed.exists()
    assert script.read_text() == written + "echo mine\n"
    main(["slurm", "jobs", "--overwrite", "true"])
    assert script.read_text() == written
    assert removed.exists()
    assert site_env.read_text() == "export SBATCH_ACCOUNT=mine\n"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("my jobs", "output: 'my jobs' would have to be quoted in the scripts; choose a name without"),
        ("file/jobs", "output: file/jobs cannot be written (Not a directory); choose another folder"),
        ("file", "output: file cannot be written ("),
    ],
)
def test_an_invalid_folder_is_refused(here, capsys, output, sentence):
    (here / "file").write_text("")
    assert sentence in refused(capsys, "slurm", f"--output={output}")[1]
    assert [path.name for path in here.iterdir()] == ["file"]


@pytest.fixture
def commands(here) -> Path:
    """The bin of a virtual environment, with a ``unibert`` and a ``srun`` that only prints what it should start."""
    folder = here / "venv" / "bin"
    folder.mkdir(parents=True)
    for name, script in {"python": "exit 9", "unibert": "exit 9", "srun": 'echo "$PWD: $*"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def job(script: Path, here: Path, path: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a job as Slurm does: a copy of the script, in a folder of Slurm."""
    spool = here / "spool"
    spool.mkdir(exist_ok=True)
    copy = Path(shutil.copy(script, spool / "slurm_script"))
    slurm = {"SLURM_SUBMIT_DIR": str(here), "SLURM_JOB_ID": "1", "SLURM_NNODES": "1"}
    environment = {"PATH": path, "UNIBERT_CACHE": str(spool), **slurm, **variables}
    return subprocess.run([copy, *arguments], cwd=spool, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_job_finds_the_unibert_that_is_on_the_path(here, commands, absolute):
    output = str(here / "jobs") if absolute else "cluster/jobs"
    main(["slurm", "--output", output])
    ended = job(here / output / "evaluate.sh", here, f"{commands}:{os.environ['PATH']}", "model")
    assert ended.stderr == ""
    assert f"{here}: {commands}/python -u -m unibert evaluate model\n" in ended.stdout


def test_the_environment_of_a_site_precedes_that_of_a_checkout_and_the_path(here, commands):
    main(["slurm"])
    path = f"{commands}:{os.environ['PATH']}"
    shutil.copytree(commands, here / ".venv" / "bin")
    assert f"{here}/.venv/bin/python -u -m unibert" in job(here / "slurm/bench.sh", here, path, "kernels").stdout
    shutil.copytree(commands, here / "site" / "bin")
    (here / "slurm" / "site.env").write_text(f"UNIBERT_VENV={here}/site\n")
    assert f"{here}/site/bin/python -u -m unibert" in job(here / "slurm/bench.sh", here, path, "kernels").stdout


def test_a_job_without_an_environment_ends_with_one_sentence(here):
    main(["slurm"])
    bash = here / "only-bash"
    bash.mkdir()
    for name in ("bash", "env"):
        (bash / name).symlink_to(shutil.which(name))
    ended = job(here / "slurm/evaluate.sh", here, str(bash), "model")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"slurm: no virtual environment in {here}/.venv; activate the one with UniBERT before sbatch, or set "
        "UNIBERT_VENV\n"
    )
