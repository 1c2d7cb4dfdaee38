"""200 steps of the module that is trained, with every kernel path, beside the naive float64 losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import unibert_kernels.adversary
from unibert_kernels import reference

import unibert.model.unibert
from unibert.bench.gpu.short_training import PATHS, TrainingSize, train

from .closeness import DEVICE

SIZE = TrainingSize(vocab=600, hidden=32, layers=1, batch=2, sequence=64, steps=200)
CURVE = 1e-5
"""Relative. A gradient's error, at most 1e-5 of its norm, moves each step by about that share of itself; errors of
different steps at worst add up to that share of the whole way, along which the loss changes by a part of itself."""


@pytest.fixture(scope="module")
def naive() -> Callable[[bool], list[float]]:
    """The curve with the losses of `reference`, computed once."""
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
@pytest.mark.skipif(DEVICE.type != "cpu", reason="the short trainings of `make gpu` compare curves under bf16")
@pytest.mark.parametrize("name", PATHS)
def test_the_curve_is_that_of_the_naive_losses(name: str, naive: Callable[[bool], list[float]]) -> None:
    expected = naive(name.startswith("distillation"))
    actual = train(name, SIZE, "cpu")["losses"]
    assert expected[-1] < 0.95 * expected[0]
    assert actual == pytest.approx(expected, rel=CURVE)
