"""All contestants of a loss."""

from __future__ import annotations

from unibert.bench import adversary_contestants, distillation_contestants, mlm_contestants
from unibert.bench.case import Loss
from unibert.bench.contestant import Contestant


def contestants_of(loss: Loss) -> tuple[Contestant, ...]:
    """Our paths first, then the peers."""
    return {
        "mlm": mlm_contestants.CONTESTANTS,
        "distillation": distillation_contestants.CONTESTANTS,
        "adversary": adversary_contestants.CONTESTANTS,
    }[loss]
