"""All providers of a loss."""

from __future__ import annotations

from unibert.bench.losses import adversary_providers, distillation_providers, mlm_providers
from unibert.bench.losses.case import Loss
from unibert.bench.losses.provider import Provider


def providers_of(loss: Loss) -> tuple[Provider, ...]:
    """UniBERT's paths first, then the peers."""
    return {
        "mlm": mlm_providers.PROVIDERS,
        "distillation": distillation_providers.PROVIDERS,
        "adversary": adversary_providers.PROVIDERS,
    }[loss]
