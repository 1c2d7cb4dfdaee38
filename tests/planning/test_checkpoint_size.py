"""The checkpoint sizes that `unibert plan` estimates are those that a run writes."""

import json
from pathlib import Path

import pytest

from tests.training.conftest import corpus, module_run_file  # noqa: F401 - fixtures
from tests.training.processes import train_each
from unibert.cli import main
from unibert.training.engine import DS_CONFIGS

STAGES = {"zero0": (None, "adamw"), "zero1": ("bf16", "adamw"), "zero3": (None, "muon")}
"""ds_configs with the precision to enable, None for fp32, and the optimizer. They cover every rule for the size of a
checkpoint."""
AVERAGES = {"": (), " and an average": ("--training.ema_half_life=1000",)}


@pytest.fixture(scope="module")
def ds_configs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("planned")
    paths = {}
    for name, (precision, _) in STAGES.items():
        content = json.loads((DS_CONFIGS / f"{name}.json").read_text())
        if precision:
            content[precision]["enabled"] = True
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(content))
    return paths


@pytest.fixture(scope="module")
def checkpoints(module_run_file, ds_configs, tmp_path_factory) -> dict[str, Path]:  # noqa: F811
    """Checkpoints of runs of one step."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        {
            "name": f"{name}{average}",
            "ranks": 1,
            "fp16": False,
            "overrides": [
                f"--run_dir={folder / f'{name}{average}'}",
                f"--training.ds_config={path}",
                "--training.tokens=512",
                f"--optimizer.name={STAGES[name][1]}",
                *options,
            ],
        }
        for name, path in ds_configs.items()
        for average, options in AVERAGES.items()
    ]
    train_each(folder, module_run_file, runs, timeout=300)
    return {run["name"]: folder / run["name"] / "checkpoints" / "step-00000001" for run in runs}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", STAGES)
def test_size_of_a_checkpoint(name, average, checkpoints, ds_configs, module_run_file, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    words = [
        str(module_run_file),
        "--gpus=1",
        "--gpu=cpu",
        f"--training.ds_config={ds_configs[name]}",
        f"--optimizer.name={STAGES[name][1]}",
        *AVERAGES[average],
    ]
    main(["plan", *words, f"--output={tmp_path / 'plan.json'}"])
    plan = json.loads((tmp_path / "plan.json").read_text())
    planned = next(e["checkpoint_bytes"] for e in plan["memory"] if e["ds_config"] == str(ds_configs[name]))
    actual = sum(path.stat().st_size for path in checkpoints[f"{name}{average}"].rglob("*") if path.is_file())
    # The rest is DeepSpeed's scripts, 41 kB, and names and shapes of tensors. One byte per parameter would exceed it.
    assert 0 < actual - planned < 80_000
    assert sum(plan["parameters"].values()) > 80_000
