"""Muon: its update, and runs with it under every ZeRO stage."""

import json
from pathlib import Path

import pytest
import torch

from tests.training.checkpoints import damage_later_checkpoints
from tests.training.compare import largest_relative_difference, lines_without_timing
from tests.training.conftest import run_to_end
from unibert.training.checkpoint.folder import complete_checkpoints, full_state_dict
from unibert.training.engine import DS_CONFIGS
from unibert.training.muon import UPDATE_RMS, MuonWithAdamW, orthogonal_updates

SHORT = ["--optimizer.name=muon", f"--training.tokens={6 * 8 * 64}", "--training.checkpoint_every=3"]
# Gradients in another order of summation differ by some units in the last place, 6e-8 of their norm. The iteration
# enlarges what belongs to the smallest singular values, at most 3.4445**5 = 485 times, so an update may differ by 3e-5
# of itself, and the six updates change no figure by more than a tenth.
FIVE_DIGITS = 1e-5


def test_an_update_is_nearly_orthogonal():
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((24, 24), (64, 16), (16, 64)):
        # Singular values between 0.5 and 2.
        left, _, right = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
        values = torch.linspace(0.5, 2, min(rows, columns))
        [update] = orthogonal_updates([left * values @ right])
        found = left.T @ update @ right.T / (UPDATE_RMS * max(rows, columns) ** 0.5)
        # The polynomial keeps the singular vectors.
        assert found.diagonal().min() > 0.65
        assert found.diagonal().max() < 1.21
        torch.testing.assert_close(found, found.diagonal().diag(), rtol=0, atol=1e-4)


def optimizer_of(weights: list[torch.Tensor]) -> MuonWithAdamW:
    common = {"lr": 0.1, "weight_decay": 0.1}
    groups = [{"params": [weight], "muon": weight.ndim == 2, **common} for weight in weights]
    return MuonWithAdamW(groups, momentum=0.9, learning_rate=0.1, betas=(0.9, 0.99))


def test_a_gradient_that_is_not_finite_changes_nothing_and_one_is_divided_by_its_scale():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(8, 4, generator=generator), torch.randn(4, generator=generator)]
    gradients = [torch.randn_like(weight) for weight in start]
    results = []
    for disturbed in (False, True):
        weights = [weight.clone().requires_grad_() for weight in start]
        optimizer = optimizer_of(weights)
        for step in range(3):
            if disturbed and step:
                before = [weight.detach().clone() for weight in weights]
                for weight in weights:
                    weight.grad = torch.full_like(weight, torch.nan)
                optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())
                optimizer.step()
                assert all(torch.equal(*pair) for pair in zip(before, weights, strict=True))
            # Powers of two round nothing. They differ, since the direction of an update does not depend on a factor
            # that all gradients have.
            scale = 4.0**step if disturbed else 1.0
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient * (step + 1) * scale
            optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.full((), scale)
            optimizer.step()
        results.append(weights)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert not torch.equal(results[0][0], start[0])


@pytest.fixture(scope="module")
def one_process(module_run_file, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("one") / "run"
    status, output = run_to_end("pretrain", str(module_run_file), f"--run_dir={run_dir}", *SHORT)
    assert status == 0, output
    return run_dir


@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_follow_one_process_and_continue_bit_for_bit(stage, one_process, module_run_file, tmp_path, unibert):
    config = json.loads((DS_CONFIGS / f"zero{stage}.json").read_text())
    if stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    ds_config, run_dir = tmp_path / "ds.json", tmp_path / "run"
    ds_config.write_text(json.dumps(config))
    words = ["pretrain", str(module_run_file), f"--run_dir={run_dir}", f"--training.ds_config={ds_config}", *SHORT]
    status, output = unibert(*words, ranks=2)
    assert status == 0, output
    assert largest_relative_difference(one_process, run_dir) < FIVE_DIGITS
    weights, lines = full_state_dict(complete_checkpoints(run_dir / "checkpoints")[-1]), lines_without_timing(run_dir)

    damage_later_checkpoints(run_dir)
    status, output = unibert(*words)
    assert status == 1
    assert "the state of optimizer.name muon cannot be continued by another world size" in output
    status, output = unibert(*words, ranks=2)
    assert status == 0, output
    again = full_state_dict(complete_checkpoints(run_dir / "checkpoints")[-1])
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    assert lines_without_timing(run_dir)[-3:] == lines[-3:]


def test_only_matrices_of_the_layers_are_its_own(one_process):
    """The state of each parameter tells by which optimizer it was updated."""
    checkpoint = complete_checkpoints(one_process / "checkpoints")[-1]
    content = torch.load(next(checkpoint.glob("*/mp_rank_00_model_states.pt")), weights_only=False)
    states = {
        name: content["optimizer"]["state"][number].keys()
        for group in content["optimizer"]["param_groups"]
        for number, name in zip(group["params"], group["names"], strict=True)
    }
    muon = {name for name, state in states.items() if state == {"momentum_buffer"}}
    assert len(muon) == 2 * 4
    assert all(name.startswith("masked_lm.model.layers.") for name in muon)
    assert all(states[name] == {"step", "exp_avg", "exp_avg_sq"} for name in states.keys() - muon)


def test_a_branch_has_the_optimizer_of_its_parent(one_process, module_run_file, tmp_path, unibert):
    words = ["pretrain", str(module_run_file), f"--run_dir={tmp_path / 'branch'}", f"--resume_from={one_process}"]
    status, output = unibert(*words)
    assert status == 1
    assert "has the state of muon, which adamw cannot continue; set it to muon" in output
