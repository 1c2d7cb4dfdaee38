"""Every ds_config that ships trains, on two ranks, in its own precision, and follows one process in fp32."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.compare import largest_relative_difference, lines_without_timing
from tests.training.processes import train_each
from unibert.errors import UserError
from unibert.training.engine import DS_CONFIGS, read_ds_config

pytestmark = pytest.mark.slow

NAMES = sorted(path.stem for path in DS_CONFIGS.glob("*.json"))
OFFLOADED = ("zero1_offload", "zero3_offload")
STEPS = 6
# fp32's sums in another order, as in test_zero.
FIVE_DIGITS = 1e-5
# A unit in the last place of bf16 and fp16. Losses are means over some hundred tokens whose states were rounded in
# every layer, so a handful of units are left in the worst of them; were the scale or the first step wrong, the error
# would be ten times that.
ROUNDING = {"bf16": 4 * 2**-8, "fp16": 4 * 2**-11}


def precision_of(name: str) -> str:
    return "fp16" if name.endswith("fp16") else "bf16"


@pytest.fixture(scope="module")
def runs(module_run_file, tmp_path_factory) -> Path:
    """Runs of every ds_config with its precision on, and of some in fp32, under their names."""
    folder = tmp_path_factory.mktemp("ds_configs")
    planned = [_run(folder, "fp32", "zero0", None, ranks=1)]
    planned += [_run(folder, name, name, precision_of(name), ranks=2) for name in NAMES]
    planned += [_run(folder, f"{name}, fp32", name, None, ranks=2) for name in OFFLOADED]
    train_each(folder, module_run_file, planned, timeout=500)
    return folder


def _run(folder: Path, name: str, ds_config: str, precision: str | None, ranks: int) -> dict[str, Any]:
    content = json.loads((DS_CONFIGS / f"{ds_config}.json").read_text())
    if precision is not None:
        assert content[precision] == {"enabled": "auto"}
        content[precision]["enabled"] = True
    if content["zero_optimization"]["stage"] == 3:
        content["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if content["zero_optimization"]["stage"]:
        # Smaller than the embedding, so that there are several buckets, and one parameter beyond a bucket's size.
        content["zero_optimization"]["reduce_bucket_size"] = 10_000
    path = folder / f"{name}.ds.json"
    path.write_text(json.dumps(content))
    return {
        "name": name,
        "ranks": ranks,
        "fp16": precision == "fp16",
        "overrides": [
            f"--run_dir={folder / name}",
            f"--training.ds_config={path}",
            f"--training.tokens={STEPS * 8 * 64}",
            "--training.evaluate_every=0",
            "--training.checkpoint_every=3",
        ],
    }


def _losses(run_dir: Path) -> list[float]:
    return [line["mlm_loss"] for line in lines_without_timing(run_dir) if "mlm_loss" in line]


@pytest.mark.parametrize("name", NAMES)
def test_each_follows_one_process_in_its_own_precision(name, runs):
    precision = precision_of(name)
    reference, losses = _losses(runs / "fp32"), _losses(runs / name)
    assert losses != reference
    assert losses == pytest.approx(reference, rel=ROUNDING[precision])
    # Weights were updated as in fp32, and not merely left where they were: the losses' way down is the same.
    assert losses[0] - losses[-1] == pytest.approx(reference[0] - reference[-1], rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_each_does_what_its_name_says(name, runs):
    dtypes = {"bf16": "bfloat16", "fp16": "float16"}
    offload = "offload" in name
    assert json.loads((runs / f"{name}.json").read_text()) == {
        "dtype": dtypes[precision_of(name)],
        "stage": int(name[len("zero")]),
        "offloads optimizer": offload,
        "offloads weights": offload and name.startswith("zero3"),
        "optimizer": "AdamW",
    }


@pytest.mark.parametrize("name", OFFLOADED)
def test_offload_gives_the_losses_of_one_process(name, runs):
    assert largest_relative_difference(runs / "fp32", runs / f"{name}, fp32") < FIVE_DIGITS


def test_offloaded_runs_continue_exactly(runs, module_run_file, tmp_path):
    planned = []
    for name in OFFLOADED:
        continued = f"{name}, fp32"
        shutil.copytree(runs / continued, tmp_path / continued)
        shutil.rmtree(tmp_path / continued / "checkpoints" / f"step-{STEPS:08d}")
        planned.append(_run(tmp_path, continued, name, None, ranks=2))
    train_each(tmp_path, module_run_file, planned, timeout=500)
    for name in OFFLOADED:
        continued = f"{name}, fp32"
        assert lines_without_timing(tmp_path / continued) == lines_without_timing(runs / continued)


@pytest.mark.parametrize("name", NAMES)
def test_precision_is_left_to_the_device(name):
    on_cpu, on_gpu = (read_ds_config(DS_CONFIGS / f"{name}.json", torch.device(kind)) for kind in ("cpu", "cuda"))
    precision = precision_of(name)
    assert (on_cpu[precision]["enabled"], on_gpu[precision]["enabled"]) == (False, True)


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ({"zero_optimization": {"stage": 0}, "fp16": {"enabled": True}}, "DeepSpeed does not scale the loss of fp16"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "sets both bf16 and fp16"),
    ],
)
def test_precisions_that_cannot_train_are_refused(content, mistake, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=mistake):
        read_ds_config(path, torch.device("cpu"))


def test_fp16_is_refused_where_the_cpu_has_none(tmp_path):
    from deepspeed.accelerator import get_accelerator

    if torch.cuda.is_available() or get_accelerator().is_fp16_supported():
        pytest.skip("DeepSpeed takes fp16 here")
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "fp16": {"enabled": True}}))
    with pytest.raises(UserError, match="fp16 is enabled, but this cpu does not support it; choose another precision"):
        read_ds_config(path, torch.device("cpu"))
