"""Reading and cutting a metrics.jsonl with damaged and repeated lines."""

import json
from pathlib import Path

from unibert.configuration import parse
from unibert.training.checkpoint.claim import Claim
from unibert.training.config import RunConfig
from unibert.training.metrics_file import LoggedMetrics, MetricsFile, read_metrics
from unibert.training.metrics_log import MetricsLog

LINES = [
    '{"step": 1, "loss": 3.0}',
    '{"step": 2, "loss": 2.0}',
    '{"step": 2, "heldout_mlm_loss": 2.5}',
    '{"st{"step": 3}',
    '{"loss": 1.0}',
    "",
    '{"step": 3, "loss": NaN}',
    '{"step": 2, "loss": 9.0}',
    '{"step": 0, "tokens": 0, "retrieval_raw": 0.25}',
    '{"step": 4, "lo',
]


def write(folder: Path) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(LINES))
    return path


def test_damaged_lines_are_counted_and_the_later_of_two_lines_counts(tmp_path):
    logged = read_metrics(write(tmp_path))
    assert [record["step"] for record in logged.records] == [1, 2, 2, 3, 2, 0]
    assert [(record["step"], record["loss"]) for record in logged.training][:2] == [(1, 3.0), (2, 9.0)]
    assert [record["step"] for record in logged.training] == [1, 2, 3]
    assert logged.heldout == [{"step": 2, "heldout_mlm_loss": 2.5}]
    assert logged.retrieval == [{"step": 0, "tokens": 0, "retrieval_raw": 0.25}]
    assert logged.damaged_lines == 3


def test_a_resumed_run_keeps_intact_lines_up_to_its_step(tmp_path):
    path = write(tmp_path)
    MetricsFile(path).keep_until(2)
    assert path.read_text().splitlines() == [LINES[0], LINES[1], LINES[2], LINES[7], LINES[8]]
    MetricsFile(path).append({"step": 3, "loss": 0.5})
    assert read_metrics(path) == LoggedMetrics(
        [json.loads(line) for line in (*LINES[:3], LINES[7], LINES[8])] + [{"step": 3, "loss": 0.5}], damaged_lines=0
    )


def test_a_run_without_a_checkpoint_measures_its_start_again(tmp_path):
    path = write(tmp_path)
    config = parse(RunConfig, [f"--run_dir={tmp_path}", "--corpus=c", "--training.tokens=2048"])
    MetricsLog(tmp_path, Claim(tmp_path), 50).start_after(0, 0, config)
    assert path.read_text() == ""
