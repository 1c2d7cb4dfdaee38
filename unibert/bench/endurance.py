"""``unibert bench endurance``: whether memory and time of a step grow over a long run of tiny steps.

The whole trainer runs on several ranks, with an adversary, held-out losses and checkpoints. The JSON file holds
``environment``, ``config``, and ``tenths``, one object for each tenth of the steps: ``steps`` done at its end,
``seconds_per_step`` (median of its log lines, and ``parts`` likewise) and ``memory_gib`` (peak of rank 0 so far), then
``memory_growth_mib`` and ``step_growth`` from the second tenth to the last.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unibert.bench.goals import Goal, format_goals
from unibert.bench.result_files import write_result_file
from unibert.configuration import to_dict
from unibert.environment import describe_environment
from unibert.errors import UserError
from unibert.launcher import launcher_command
from unibert.text import plain_table
from unibert.training.metrics_file import read_metrics

Row = dict[str, Any]

SEQUENCES, SEQUENCE_LENGTH = 2, 32
"""Those of each rank in a step: so few that the trainer's own work is most of it."""
LINES, CHECKPOINTS = 200, 20
"""Log lines and checkpoints of a run."""
MAX_MEMORY_GROWTH_MIB, MAX_STEP_GROWTH = 16.0, 0.05


@dataclass(kw_only=True)
class EnduranceBenchConfig:
    """Options of ``unibert bench endurance``."""

    corpus: str
    """Corpus folder made by ``unibert corpus build``."""

    steps: int = 20_000
    """Steps of the run."""

    ranks: int = 2
    """Ranks that train together."""

    ds_config: str = "zero1"
    """DeepSpeed JSON, as training.ds_config in a run file."""

    output: Path = Path("docs/benchmarks/endurance.json")
    """JSON file to write."""

    def __post_init__(self) -> None:
        for key, minimum in {"steps": LINES, "ranks": 1}.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"{key}: must be at least {minimum}, got {getattr(self, key)}")


def bench_endurance(config: EnduranceBenchConfig) -> Row:
    """Train, print the figures and write them to a file.

    Returns:
        the content of the file.

    Raises:
        UserError: if the run fails; the message holds its last line. Or if the file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="unibert-endurance-") as folder:
        lines = _train(config, Path(folder) / "run")
    tenths = [_summary(lines[len(lines) * i // 10 : len(lines) * (i + 1) // 10]) for i in range(10)]
    # In the first tenth, libraries allocate what they keep, and checkpoints their copy.
    first, last = tenths[1], tenths[-1]
    results = {
        "benchmark": "endurance",
        "environment": describe_environment(),
        "config": to_dict(config) | {"corpus": Path(config.corpus).name, "output": config.output.name},
        "tenths": tenths,
        "memory_growth_mib": 1024 * (last["memory_gib"] - first["memory_gib"]),
        "step_growth": last["seconds_per_step"] / first["seconds_per_step"] - 1,
    }
    header = ("steps", "ms of a step", *first["parts"], "memory, GiB")
    print("\n".join(plain_table([header, *(_cells(tenth) for tenth in tenths)])))
    print(format_goals(_goals(results)))
    write_result_file(results, config.output)
    return results


def _train(config: EnduranceBenchConfig, run_dir: Path) -> list[Row]:
    """Return the log lines of the run."""
    sequences = config.ranks * SEQUENCES
    run = {
        "run_dir": str(run_dir),
        "corpus": config.corpus,
        "training": {
            "tokens": config.steps * sequences * SEQUENCE_LENGTH,
            "global_batch_size": sequences,
            "micro_batch_size": SEQUENCES,
            "sequence_length": SEQUENCE_LENGTH,
            "ds_config": config.ds_config,
            "log_every": config.steps // LINES,
            "heldout_sequences": sequences,
            "evaluate_every": config.steps // CHECKPOINTS,
            "checkpoint_every": config.steps // CHECKPOINTS,
        },
        "stream": {"lanes": sequences},
        "model": {
            "config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "intermediate_size": 32,
            }
        },
        "adversary": {"max_lambda": 0.1},
    }
    run_file = run_dir.with_suffix(".yaml")
    run_file.write_text(yaml.safe_dump(run), encoding="utf-8")
    command = launcher_command("unibert", ["pretrain", str(run_file)], ranks=config.ranks)
    completed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if completed.returncode:
        last_line = next((line for line in reversed(completed.stdout.splitlines()) if line.strip()), "no output")
        raise UserError(f"the training ended with status {completed.returncode}: {last_line}")
    return read_metrics(run_dir / "metrics.jsonl").training


def _summary(lines: Sequence[Row]) -> Row:
    names = lines[0]["seconds_per_step"]
    parts = {name: statistics.median(line["seconds_per_step"][name] for line in lines) for name in names}
    return {
        "steps": lines[-1]["step"],
        "seconds_per_step": statistics.median(sum(line["seconds_per_step"].values()) for line in lines),
        "parts": parts,
        "memory_gib": lines[-1]["memory_gib"],
    }


def _cells(tenth: Row) -> Sequence[str]:
    times = (tenth["seconds_per_step"], *tenth["parts"].values())
    return f"{tenth['steps']:,}", *(f"{1000 * seconds:.2f}" for seconds in times), f"{tenth['memory_gib']:.3f}"


def _goals(results: Row) -> list[Goal]:
    config = results["config"]
    case = f"{config['steps']:,} steps, {config['ranks']} ranks, {results['environment']['device']}"
    memory, step = results["memory_growth_mib"], results["step_growth"]
    return [
        Goal(
            f"memory grows by ≤ {MAX_MEMORY_GROWTH_MIB:g} MiB", case, f"{memory:.1f}", memory <= MAX_MEMORY_GROWTH_MIB
        ),
        Goal(f"a step grows by ≤ {MAX_STEP_GROWTH:.0%}", case, f"{step:+.1%}", step <= MAX_STEP_GROWTH),
    ]
