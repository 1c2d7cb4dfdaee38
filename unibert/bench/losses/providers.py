"""All contestants of a loss."""

from __future__ import annotations

from unibert.bench.losses import adversary_providers, distillation_providers, mlm_providers
from unibert.bench.losses.case import Loss
from unibert.bench.losses.provider import Contestant


def contestants_of(loss: Loss) -> tuple[Contestant, ...]:
    """Our paths first, then the peers."""
    return {
        "mlm": mlm_providers.CONTESTANTS,
        "distillation": distillation_providers.CONTESTANTS,
        "adversary": adversary_providers.CONTESTANTS,
    }[loss]
