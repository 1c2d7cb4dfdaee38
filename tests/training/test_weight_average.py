"""The moving average of the weights, under every form in which DeepSpeed keeps them."""

import json

import pytest
import torch

from tests.training.checkpoints import damage_later_checkpoints
from unibert.cli import main
from unibert.training.checkpoint.folder import complete_checkpoints, full_state_dict

STEP = 8 * 64
SHARDED_BF16 = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}


@pytest.mark.parametrize(
    ("ds_config", "ranks"), [("zero0", 1), (SHARDED_BF16, 2), ("zero3", 2)], ids=["zero0", "zero2-bf16", "zero3"]
)
def test_it_is_the_recursion_over_the_weights_of_every_step(module_run_file, tmp_path, unibert, ds_config, ranks):
    run_dir = tmp_path / "run"
    if not isinstance(ds_config, str):
        (tmp_path / "ds.json").write_text(json.dumps(ds_config))
        ds_config = str(tmp_path / "ds.json")
    words = [
        "pretrain",
        str(module_run_file),
        f"--run_dir={run_dir}",
        f"--training.tokens={4 * STEP}",
        "--training.checkpoint_every=1",
        "--training.keep_checkpoints=9",
        f"--training.ds_config={ds_config}",
        # The decay of a step is the square root of a half.
        f"--training.ema_half_life={2 * STEP}",
    ]
    status, output = unibert(*words, ranks=ranks)
    assert status == 0, output
    checkpoints = complete_checkpoints(run_dir / "checkpoints")
    assert len(checkpoints) == 4
    expected = {name: tensor.double() for name, tensor in full_state_dict(checkpoints[0]).items()}
    for checkpoint in checkpoints[1:]:
        for name, tensor in full_state_dict(checkpoint).items():
            expected[name] += (1 - 0.5**0.5) * (tensor.double() - expected[name])
    average, weights = full_state_dict(checkpoints[-1], ema=True), full_state_dict(checkpoints[-1])
    assert average.keys() == expected.keys()
    for name, tensor in average.items():
        # Three steps of fp32, each with an error of half a unit in the last place of numbers below 2.
        torch.testing.assert_close(tensor.double(), expected[name], rtol=3e-7, atol=3e-7)
    assert sum(not torch.equal(average[name], weights[name]) for name in weights) > len(weights) / 2

    # A run that was interrupted has the same average.
    for checkpoint in checkpoints[2:]:
        checkpoint.rename(checkpoint.with_name(f"damaged-{checkpoint.name}"))
    status, output = unibert(*words, ranks=ranks)
    assert status == 0, output
    again = full_state_dict(checkpoints[-1], ema=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in average.items())


def test_its_export_and_what_cannot_go_on(module_run_file, tmp_path, unibert, capsys):
    run_dir = tmp_path / "run"
    words = ["pretrain", str(module_run_file), f"--run_dir={run_dir}", "--training.ds_config=zero1"]
    words += [f"--training.tokens={2 * STEP}", "--training.checkpoint_every=1"]
    averaging = f"--training.ema_half_life={3 * STEP}"
    status, output = unibert(*words, averaging)
    assert status == 0, output
    main(["export", str(run_dir), "--ema"])
    assert capsys.readouterr().out.startswith(f"The model is in {run_dir / 'ema'}. Next:")
    card = (run_dir / "ema" / "README.md").read_text()
    assert "an exponential moving average over the training, with a half-life of 1,536 tokens" in card
    assert "the MLM loss on held-out documents" not in card
    assert (run_dir / "ema" / "model.safetensors").read_bytes() != (
        run_dir / "model" / "model.safetensors"
    ).read_bytes()

    damage_later_checkpoints(run_dir)
    status, output = unibert(*words, averaging, ranks=2)
    assert status == 1
    assert (
        "its average of weights cannot be continued by another world size or ZeRO stage; start it with world" in output
    )
    status, output = unibert(*words, "--training.ema_half_life=null", ranks=2)
    assert status == 0, output
    status, output = unibert("export", str(run_dir), "--ema")
    assert (status, "has no average of weights; training.ema_half_life makes runs keep one" in output) == (1, True)
