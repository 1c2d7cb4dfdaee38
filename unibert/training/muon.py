"""Muon for the matrices of the encoder's layers, and AdamW for all else, on whole weights or on ZeRO's shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b and c of the polynomial a x + b x³ + c x⁵, of Jordan et al., https://kellerjordan.github.io/posts/muon/. It
takes every singular value from 0.0015 to 1 to one between 0.65 and 1.21 in `ITERATIONS`."""
ITERATIONS = 5
UPDATE_RMS = 0.2
"""RMS of an update's elements at learning rate 1, as AdamW's is, so that both can share a learning rate (Moonlight,
arXiv 2502.16982, section 2.2)."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the groups with ``muon``, torch's fused AdamW for the others.

    Muon adds the gradient to a momentum and updates by the nearest orthogonal matrix to gradient and momentum together
    (Nesterov), of the size of an update by AdamW. It keeps one number per weight, AdamW two. A matrix must be whole for
    this: where ZeRO gives a rank a part of it, all ranks gather the update, and each keeps its part of the result.

    As with the fused AdamW, the gradient is divided by the attribute ``grad_scale``, and nothing changes if the
    attribute ``found_inf`` is 1; both are fp32 scalars on the device of the weights.

    Args:
        groups: parameter groups, each with ``muon``. Parameters of Muon are fp32 matrices or, after `use_shards`, flat
            shards of them.
        momentum: Muon's.
        learning_rate, betas: those of groups without their own.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, learning_rate: float, betas: tuple[float, float]
    ) -> None:
        self._adamw = torch.optim.AdamW(
            [group for group in groups if not group["muon"]], lr=learning_rate, betas=betas, fused=True
        )
        super().__init__(groups, self._adamw.defaults)
        self._momentum = momentum
        self._shards: dict[Tensor, Shard] = {}

    def use_shards(self, shards: dict[Tensor, Shard]) -> None:
        """Take the parameters that are shards for what they are."""
        self._shards = shards

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights."""
        adamw, found_inf = self._adamw, getattr(self, "found_inf", None)
        grad_scale = getattr(self, "grad_scale", None)
        adamw.grad_scale, adamw.found_inf = grad_scale, found_inf  # type: ignore[attr-defined]
        # A checkpoint that is loaded replaces the state and the groups, and DeepSpeed hides groups.
        adamw.state, adamw.param_groups = self.state, [group for group in self.param_groups if not group["muon"]]
        adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                self._update(group, grad_scale, found_inf)

    def _update(self, group: dict[str, Any], grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        updates = []
        for parameter in parameters:
            gradient = parameter.grad if grad_scale is None else parameter.grad / grad_scale
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state["momentum_buffer"]
            if found_inf is not None:
                # The momentum takes itself in and stays what it is, without asking the host.
                gradient = torch.where(found_inf.bool(), momentum, gradient)
            momentum.lerp_(gradient, 1 - self._momentum)
            updates.append(gradient.lerp(momentum, self._momentum))
        # A shard is alone in its group.
        shard = self._shards.get(parameters[0]) if parameters else None
        directions = orthogonal_updates(updates) if shard is None else [shard.orthogonal_update(updates[0])]
        good = 1.0 if found_inf is None else 1 - found_inf
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - good * (group["lr"] * group["weight_decay"]))
            parameter.add_(direction * (-group["lr"] * good))


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What a rank has, in one flat tensor, of several matrices.

    Under ZeRO 1 and 2, the matrices stand end to end, with padding behind them, and each rank has an equal part of the
    whole. Under ZeRO 3 (``each``), it has an equal part of each matrix, padded at its end.
    """

    shapes: Sequence[torch.Size]
    each: bool
    device: torch.device
    """Where to compute; the shard may be in main memory."""

    def orthogonal_update(self, update: Tensor) -> Tensor:
        """Return this rank's part of the results of `orthogonal_updates`. All ranks must call it together.

        Args:
            update: this rank's shard, (n,) fp32.
        """
        world_size, rank = distributed.get_world_size(), distributed.get_rank()
        own = update.to(self.device)
        parts = own.new_empty(world_size, len(own))
        distributed.all_gather(list(parts), own)
        result = torch.zeros_like(own)
        sizes = [shape.numel() for shape in self.shapes]
        # Elements of the shard, or of the whole of all shards, that each matrix takes.
        lengths = [-(-size // world_size) for size in sizes] if self.each else sizes
        begins = [sum(lengths[:number]) for number in range(len(lengths))]
        first = 0 if self.each else rank * len(own)
        here = [n for n in range(len(sizes)) if begins[n] < first + len(own) and begins[n] + lengths[n] > first]
        matrices = []
        for n in here:
            taken = slice(begins[n], begins[n] + lengths[n])
            flat = parts[:, taken].flatten() if self.each else parts.view(-1)[taken]
            matrices.append(flat[: sizes[n]].view(self.shapes[n]))
        for n, direction in zip(here, orthogonal_updates(matrices), strict=True):
            # The first element of the matrix that is in the shard, and its place there.
            start = rank * lengths[n] if self.each else max(first - begins[n], 0)
            place = begins[n] if self.each else max(begins[n] - first, 0)
            values = direction.flatten()[start:][: min(lengths[n], len(own) - place)]
            result[place : place + len(values)] = values
        return result.to(update.device)


def orthogonal_updates(updates: Sequence[Tensor]) -> list[Tensor]:
    """Return for each matrix the nearest orthogonal one, roughly, times a factor that makes its RMS `UPDATE_RMS`.

    The Newton-Schulz iteration computes matrices of one shape together, on a GPU in bf16. For an (R, C) matrix of full
    rank the factor is ``UPDATE_RMS · sqrt(max(R, C))``.

    Args:
        updates: fp32 matrices.
    """
    results: list[Tensor] = list(updates)
    by_shape: dict[torch.Size, list[int]] = {}
    for number, update in enumerate(updates):
        by_shape.setdefault(update.shape, []).append(number)
    for (rows, columns), numbers in by_shape.items():
        scale = UPDATE_RMS * math.sqrt(max(rows, columns))
        for number, direction in zip(
            numbers, _orthogonal(torch.stack([updates[number] for number in numbers])), strict=True
        ):
            results[number] = direction.float() * scale
    return results


def _orthogonal(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration on (N, R, C) matrices."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # The iteration converges for singular values up to 1.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
