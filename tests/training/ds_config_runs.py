"""Program: a short run with each of some ds_configs. ``OUTPUT RUN.yaml RUNS.json`` takes a list of objects with "name",
"ranks", "overrides" and "fp16", and writes what each run's engine was to ``OUTPUT/<name>.json``.

Ranks are forked from one process, which saves them most of their start.
"""

import json
import sys
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator

from tests.training.forked_ranks import on_ranks
from unibert.configuration import parse
from unibert.training.config import RunConfig
from unibert.training.loop import Pretraining
from unibert.training.ranks.collectives import join
from unibert.training.run_history import RunHistory


def main() -> None:
    output, run_file, runs = sys.argv[1:]
    for run in json.loads(Path(runs).read_text()):
        words = ["--config", run_file, *run["overrides"]]
        config = parse(RunConfig, words)
        on_ranks(run["ranks"], train, config, run["fp16"], Path(output) / f"{run['name']}.json")


def train(config: RunConfig, fp16: bool, report: Path) -> None:
    if fp16:
        # DeepSpeed refuses fp16 on CPUs without instructions for it, though torch computes in it on all.
        accelerator: Any = type(get_accelerator())
        accelerator.is_fp16_supported = lambda self: True
    pretraining = Pretraining(config, join(), RunHistory())
    pretraining.run()
    engine = pretraining.engine
    if engine.global_rank == 0:
        found = {
            "dtype": str(next(engine.module.parameters()).dtype).removeprefix("torch."),
            "stage": engine.zero_optimization_stage(),
            "offloads optimizer": bool(engine.zero_use_cpu_optimizer()),
            "offloads weights": engine.zero_offload_param() is not None,
            "optimizer": type(engine.basic_optimizer).__name__,
        }
        report.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
