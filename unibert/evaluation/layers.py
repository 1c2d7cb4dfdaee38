"""The layers that are scored, and the one that represents the model, which no test set may choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unibert.errors import UserError


@dataclass(frozen=True)
class ScoredLayers:
    """Layers to score, counted from 0, the embeddings' output."""

    scored: list[int]
    """In ascending order."""
    headline: int
    """The layer whose scores represent the model."""
    chosen_by: str | dict[str, Any]
    """``named``, ``last layer``, or ``language``, ``split`` and ``rows`` of the set on which the layer was best."""


def named_layers(named: Sequence[int], num_layers: int) -> ScoredLayers:
    """Return the layers of ``--layers``, of which negative ones count from the end; the first represents the model.

    Raises:
        UserError: if the model has no such layer.
    """
    if any(not -num_layers <= layer < num_layers for layer in named):
        raise UserError(f"layers: {list(named)} must lie between {-num_layers} and {num_layers - 1}, the last layer")
    layers = [layer % num_layers for layer in named]
    return ScoredLayers(sorted(set(layers)), layers[0], "named")


def how_chosen(chosen_by: str | dict[str, Any]) -> str:
    """Return the end of a sentence that says how the layer was chosen."""
    if isinstance(chosen_by, dict):
        return f"chosen on the {chosen_by['rows']:,} pairs of the {chosen_by['language']} {chosen_by['split']} set"
    return {"named": "named in advance", "last layer": "the last, since there is no dev set to choose by"}[chosen_by]
