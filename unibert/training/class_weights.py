"""Weights of the languages in the discriminator's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from unibert.model.config import AdversaryConfig
from unibert.stream import Stream

MAX_CLASS_WEIGHT = 10.0
"""Maximum weight of a document of a rare language; the average weight over the documents is 1."""


def class_weights(adversary: AdversaryConfig | None, stream: Stream, progress: float) -> Tensor | None:
    """(L,) fp32: each language's weight, the inverse of its share of the documents; None if they are not weighted.

    The weights are capped. Otherwise a document of a very rare language would dominate the clipped gradient.
    """
    if adversary is None or not adversary.class_balanced:
        return None
    shares = torch.from_numpy(stream.document_shares(progress)).float()
    return torch.where(shares > 0, 1 / (len(shares) * shares), 0.0).clamp(max=MAX_CLASS_WEIGHT)
