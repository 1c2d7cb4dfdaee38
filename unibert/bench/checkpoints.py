"""``unibert bench checkpoints``: how long training stalls for checkpoints, and how long their writing takes.

A short run is trained twice, without checkpoints and with them. The JSON file holds ``environment``, ``config``, for
each checkpoint ``bytes``, ``training_waited`` and ``writing`` (seconds), the ratio of the two, and the seconds per step
with and without checkpoints.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unibert.bench.result_files import write_result_file
from unibert.configuration import to_dict
from unibert.environment import describe_environment
from unibert.errors import UserError
from unibert.training.checkpoint.folder import complete_checkpoints, describe
from unibert.training.metrics_file import read_metrics


@dataclass(kw_only=True)
class CheckpointBenchConfig:
    """Options of ``unibert bench checkpoints``."""

    corpus: str
    """Corpus folder made by ``unibert corpus build``."""

    hidden_size: int = 512
    """Hidden size of the model; its heads have 64."""

    layers: int = 8
    """Layers of the model."""

    ds_config: str = "zero1"
    """DeepSpeed JSON, as training.ds_config in a run file."""

    sequences: int = 8
    """Sequences of 128 tokens in a step."""

    checkpoints: int = 4
    """Number of checkpoints to write. The first is reported separately, since its memory is new."""

    checkpoint_every: int = 6
    """Steps between checkpoints: enough to write one before the next, which would wait for it."""

    output: Path = Path("docs/benchmarks/checkpoints-cpu.json")
    """JSON file to write."""

    def __post_init__(self) -> None:
        for key, minimum in {"layers": 1, "sequences": 1, "checkpoints": 2, "checkpoint_every": 1}.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"{key}: must be at least {minimum}, got {getattr(self, key)}")
        if self.hidden_size <= 0 or self.hidden_size % 64:
            raise ValueError(f"hidden_size: must be a multiple of 64, got {self.hidden_size}")


def bench_checkpoints(config: CheckpointBenchConfig) -> dict[str, Any]:
    """Train both runs, print the figures and write them to a file.

    Returns:
        the content of the file.

    Raises:
        UserError: if a run fails; the message holds its last line. Or if the file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="unibert-checkpoints-") as folder:
        step_without = _train(config, Path(folder) / "without", checkpoint_every=10**6)
        run_dir = Path(folder) / "with"
        step_with = _train(config, run_dir, checkpoint_every=config.checkpoint_every)
        rows = []
        for path in complete_checkpoints(run_dir / "checkpoints")[: config.checkpoints]:
            size = sum((path / name).stat().st_size for name in describe(path)["files"])
            rows.append({"bytes": size, **describe(path)["seconds"]})
    waited, writing = (statistics.median(row[key] for row in rows[1:]) for key in ("training_waited", "writing"))
    results = {
        "benchmark": "checkpoints",
        "environment": describe_environment(),
        "config": to_dict(config) | {"corpus": Path(config.corpus).name, "output": config.output.name},
        "checkpoints": rows,
        "waited_share_of_writing": waited / writing,
        "seconds_per_step": {"without_checkpoints": step_without, "with_checkpoints": step_with},
    }
    print(
        f"{rows[0]['bytes'] / 2**30:.2f} GiB: training waited {waited:.3f} s (for the first "
        f"{rows[0]['training_waited']:.3f} s), writing took {writing:.2f} s: {100 * waited / writing:.1f} %; "
        f"a step takes {step_without:.3f} s without checkpoints, {step_with:.3f} s with one every "
        f"{config.checkpoint_every} steps"
    )
    write_result_file(results, config.output)
    return results


def _train(config: CheckpointBenchConfig, run_dir: Path, *, checkpoint_every: int) -> float:
    """Train a run; return the mean seconds per step after the first ``config.checkpoint_every`` steps."""
    steps = (config.checkpoints + 1) * config.checkpoint_every
    run = {
        "run_dir": str(run_dir),
        "corpus": config.corpus,
        "training": {
            "tokens": steps * config.sequences * 128,
            "global_batch_size": config.sequences,
            "micro_batch_size": 8,
            "sequence_length": 128,
            "ds_config": config.ds_config,
            "log_every": 1,
            "heldout_sequences": 1,
            "checkpoint_every": checkpoint_every,
            "keep_checkpoints": config.checkpoints + 1,
        },
        "stream": {"lanes": config.sequences},
        "model": {
            "config": {
                "hidden_size": config.hidden_size,
                "num_hidden_layers": config.layers,
                "num_attention_heads": config.hidden_size // 64,
                "intermediate_size": 3 * config.hidden_size // 2,
            }
        },
    }
    run_file = run_dir.with_suffix(".yaml")
    run_file.write_text(yaml.safe_dump(run), encoding="utf-8")
    command = [sys.executable, "-m", "unibert", "pretrain", str(run_file)]
    completed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if completed.returncode:
        last_line = next((line for line in reversed(completed.stdout.splitlines()) if line.strip()), "no output")
        raise UserError(f"the training ended with status {completed.returncode}: {last_line}")
    lines = read_metrics(run_dir / "metrics.jsonl").training
    tokens = config.sequences * 128
    return statistics.fmean(tokens / line["tokens_per_second"] for line in lines[config.checkpoint_every :])
