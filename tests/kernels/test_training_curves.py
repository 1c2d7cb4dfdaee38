"""Loss curves of 60 training steps with every kernel path, compared with the naive float64 losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import unibert_kernels.adversary
from unibert_kernels import reference

import unibert.model.unibert
from unibert.bench.gpu.short_training import PATHS, TrainingSize, train

from .closeness import DEVICE

SIZE = TrainingSize(vocab=600, hidden=32, layers=1, batch=2, sequence=64, steps=60)
CURVE = 1e-6
"""Relative difference. A gradient's error, at most 1e-5 of its norm, changes each step by about that share. At worst
the errors of all steps add up to that share of the whole way, along which the loss changes by 5 % of itself; to it come
a few roundings of the loss, of 6e-8 each. An error of a thousandth in the gradient of hidden states exceeds it."""


@pytest.fixture(scope="module")
def naive() -> Callable[[bool], list[float]]:
    """The curve with the losses of `reference`, computed once for each kind."""
    curves: dict[bool, list[float]] = {}

    def curve(distilled: bool) -> list[float]:
        if distilled not in curves:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(unibert.model.unibert, "mlm_head_loss", _without_path(reference.mlm_head_loss))
                patch.setattr(unibert.model.unibert, "distillation_loss", _without_path(reference.distillation_loss))
                patch.setattr(unibert_kernels.adversary, "adversary_loss", _without_path(reference.adversary_loss))
                curves[distilled] = train("distillation, chunked" if distilled else "chunked", SIZE, "cpu")["losses"]
        return curves[distilled]

    return curve


def _without_path(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, path, max_workspace=None, **options: loss(*args, **options)


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU `make gpu` compares curves under bf16")
@pytest.mark.parametrize("name", PATHS)
def test_the_curve_agrees_with_the_naive_losses(name: str, naive: Callable[[bool], list[float]]) -> None:
    expected = naive(name.startswith("distillation"))
    actual = train(name, SIZE, "cpu")["losses"]
    assert expected[-1] < 0.97 * expected[0]
    assert actual == pytest.approx(expected, rel=CURVE)
