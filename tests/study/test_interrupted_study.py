"""A study with trainings that is killed in the middle and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml


def write_data(folder: Path) -> None:
    """Sentences of the corpus's words."""
    folder.mkdir()
    for number, language in enumerate(("de", "en")):
        lines = [" ".join(f"w{90 * number + (7 * line + 5 * word) % 80}" for word in range(5)) for line in range(30)]
        (folder / f"{language}.txt").write_text("".join(f"{line}\n" for line in lines))


def study_file(folder: Path, data: Path, run_file: Path) -> Path:
    run = yaml.safe_load(run_file.read_text())
    run["training"]["tokens"] = 24 * 8 * 64
    run_file.write_text(yaml.safe_dump(run))
    study = {
        "output": str(folder / "study"),
        "run": str(run_file),
        "seeds": [1],
        "reference": "mlm",
        "arms": {
            "mlm": {"run": {"adversary": None}},
            "adversary": {},
        },
        "tasks": {
            "retrieval": {"data": str(data), "layers": [-1], "probe_restarts": 1, "device": "cpu"},
        },
    }
    folder.mkdir()
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def start(path: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "unibert", "study", str(path), "--processes=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def report_of(path: Path) -> dict:
    return json.loads((path.parent / "study" / "report" / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_study_that_was_killed_gives_the_same_report(run_file, tmp_path):
    write_data(tmp_path / "data")
    whole = study_file(tmp_path / "whole", tmp_path / "data", run_file)
    printed, _ = start(whole).communicate(timeout=500)
    assert "4 of 4 done" in printed, printed
    killed = study_file(tmp_path / "killed", tmp_path / "data", run_file)
    process = start(killed)
    # A training has begun.
    metrics = tmp_path / "killed" / "study" / "mlm" / "seed-1" / "run" / "metrics.jsonl"
    while not metrics.is_file() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    stopped, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "the study has stopped; the same command goes on" in stopped
    printed, _ = start(killed).communicate(timeout=500)
    assert "4 of 4 done" in printed, printed
    assert report_of(killed) == report_of(whole)
