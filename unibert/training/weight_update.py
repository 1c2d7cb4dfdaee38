"""The optimizer step, which clips the gradient and leaves out one that is not finite without asking the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unibert.training.engine import measures_gradient


class WeightUpdate:
    """Makes the optimizer steps of an engine, whose optimizer is torch's fused AdamW.

    DeepSpeed neither clips nor looks for overflow, where that can be turned off, since it reads a number from the
    device for each parameter group. AdamW's kernel does both in its one pass over the gradient, by two numbers on the
    device: ``grad_scale``, by which it divides, and ``found_inf``, with which it changes nothing and does not count the
    step. DeepSpeed still reads one number in fp32 under ZeRO 1 and 2, in bf16 under ZeRO 0 and 3, two in fp16, and more
    with offload, where the update is made on the host. With ``overlap_comm``, ZeRO 1 and 2 also wait for the end of the
    backward pass.

    Args:
        engine: DeepSpeed engine.
        max_norm: 2-norm to which the gradient is clipped.
    """

    def __init__(self, engine: Any, max_norm: float) -> None:
        self._engine, self._max_norm = engine, max_norm
        # Where DeepSpeed does not, every rank has the whole gradient.
        self._measured_by_engine = measures_gradient(engine)
        engine.basic_optimizer.register_step_pre_hook(self._clip)

    def make(self) -> Tensor:
        """Make the step that ends a global batch.

        Returns:
            fp32 scalar: the 2-norm of the encoder's gradient before clipping. If it is not finite, on all ranks alike,
            nothing is changed.
        """
        device = self._engine.device
        self._norm = torch.full((), torch.inf, device=device)
        self._engine.step()
        if self._measured_by_engine:
            self._norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=device)
        return self._norm

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._measured_by_engine:
            norm = self._engine.optimizer._global_grad_norm
        else:
            for parameter in self._engine.module.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    # As where DeepSpeed reduces the gradients, so that weight decay acts on any number of ranks.
                    parameter.grad = torch.zeros_like(parameter)
            norm = self._norm = gradient_norm(self._engine.module)
        updated = next(parameter for group in optimizer.param_groups for parameter in group["params"])
        norm = torch.as_tensor(norm, dtype=torch.float32).to(updated.device)
        optimizer.found_inf = norm.isfinite().logical_not_().float()  # type: ignore[attr-defined]
        optimizer.grad_scale = ((norm + 1e-6) / self._max_norm).clamp(min=1.0)  # type: ignore[attr-defined]


def gradient_norm(module: nn.Module) -> Tensor:
    """Return the 2-norm of all gradients of a module together."""
    norms = [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack(norms).norm()
