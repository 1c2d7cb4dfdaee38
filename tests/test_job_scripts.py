"""``unibert slurm``: the scripts in a folder of the user's, and that they work from there."""

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
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The folder that commands are given in."""
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


def test_they_are_not_executable_for_those_who_may_not_read_them(here):
    mask = os.umask(0o027)
    try:
        main(["slurm"])
    finally:
        os.umask(mask)
    modes = {name: (here / "slurm" / name).stat().st_mode & 0o777 for name in ("pretrain.sh", "environment.sh")}
    assert modes == {"pretrain.sh": 0o750, "environment.sh": 0o640}


def test_the_same_again_changes_nothing(here, capsys):
    main(["slurm", "--output", "jobs"])
    (here / "jobs" / "site.env").write_text("export SBATCH_ACCOUNT=mine\n")
    before = {path: path.stat().st_mtime_ns for path in (here / "jobs").iterdir()}
    capsys.readouterr()
    main(["slurm", "--output", "jobs"])
    assert capsys.readouterr().out.count("unchanged  jobs/") == len(NAMES)
    assert {path: path.stat().st_mtime_ns for path in (here / "jobs").iterdir()} == before


def test_what_was_changed_is_replaced_on_demand_only(here, capsys):
    main(["slurm", "jobs"])
    own = here / "jobs" / "site.env"
    own.write_text("export SBATCH_ACCOUNT=mine\n")
    ours, script = here / "jobs" / "evaluate.sh", here / "jobs" / "pretrain.sh"
    ours.unlink()
    written = script.read_text()
    script.write_text(written + "echo mine\n")
    capsys.readouterr()
    printed, sentence = refused(capsys, "slurm", "jobs")
    assert "jobs/pretrain.sh: differs from what would be written" in sentence
    assert "or give --overwrite (site.env is left alone)" in sentence
    assert printed == ""
    assert not ours.exists()
    assert script.read_text() == written + "echo mine\n"
    main(["slurm", "jobs", "--overwrite", "true"])
    assert script.read_text() == written
    assert ours.exists()
    assert own.read_text() == "export SBATCH_ACCOUNT=mine\n"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("my jobs", "output: 'my jobs' would have to be quoted in the scripts; choose a name without"),
        ("file/jobs", "output: file/jobs cannot be written (Not a directory); choose another folder"),
        ("file", "output: file cannot be written ("),
    ],
)
def test_a_folder_that_will_not_do(here, capsys, output, sentence):
    (here / "file").write_text("")
    assert sentence in refused(capsys, "slurm", f"--output={output}")[1]
    assert [path.name for path in here.iterdir()] == ["file"]


@pytest.fixture
def commands(here) -> Path:
    """A virtual environment's bin with a ``unibert``, and a ``srun`` that starts nothing but says what it was to."""
    folder = here / "venv" / "bin"
    folder.mkdir(parents=True)
    for name, script in {"python": "exit 9", "unibert": "exit 9", "srun": 'echo "$PWD: $*"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def job(script: Path, here: Path, path: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A job as Slurm runs it: a copy of the script, in a folder of Slurm's."""
    spool = here / "spool"
    spool.mkdir(exist_ok=True)
    copy = Path(shutil.copy(script, spool / "slurm_script"))
    slurm = {"SLURM_SUBMIT_DIR": str(here), "SLURM_JOB_ID": "1", "SLURM_NNODES": "1"}
    environment = {"PATH": path, "UNIBERT_CACHE": str(spool), **slurm, **variables}
    return subprocess.run([copy, *words], cwd=spool, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_job_finds_the_unibert_that_is_on_the_path(here, commands, absolute):
    output = str(here / "jobs") if absolute else "cluster/jobs"
    main(["slurm", "--output", output])
    ended = job(here / output / "evaluate.sh", here, f"{commands}:{os.environ['PATH']}", "model")
    assert ended.stderr == ""
    assert f"{here}: {commands}/python -u -m unibert evaluate model\n" in ended.stdout


def test_a_checkout_s_environment_comes_first_and_the_site_s_before_it(here, commands):
    main(["slurm"])
    path = f"{commands}:{os.environ['PATH']}"
    shutil.copytree(commands, here / ".venv" / "bin")
    assert f"{here}/.venv/bin/python -u -m unibert" in job(here / "slurm/bench.sh", here, path, "kernels").stdout
    shutil.copytree(commands, here / "site" / "bin")
    (here / "slurm" / "site.env").write_text(f"UNIBERT_VENV={here}/site\n")
    assert f"{here}/site/bin/python -u -m unibert" in job(here / "slurm/bench.sh", here, path, "kernels").stdout


def test_a_job_without_an_environment_ends_with_a_sentence(here):
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
