"""Loss kernels of compact multilingual encoders, none of which holds logits over the vocabulary for all rows.

Three losses, each a function of tensors that returns a named tuple of device tensors and never waits for the device:

- `mlm_head_loss`: linear head and softmax cross-entropy over the masked rows;
- `distillation_loss`: KL(teacher || student) between two linear heads;
- `adversary_loss`: language discriminator behind gradient reversal (`LanguageDiscriminator` owns its parameters).

Each may stand inside torch.compile, where it is one operator of torch.library without a graph break, and inside
activation checkpointing.

The mathematics stands in the docstrings of `mlm_head`, `distillation` and `adversary`; how it is laid out in memory
in `chunked`; how a path is chosen, in eager mode and compiled, in `operators`; `reference` holds the same in naive
float64. The package imports nothing but torch, and Triton where a path of it is taken.
"""

from unibert_kernels.adversary import AdversaryOutput, LanguageDiscriminator, adversary_loss
from unibert_kernels.distillation import DistillationOutput, distillation_loss
from unibert_kernels.mlm_head import MLMHeadOutput, mlm_head_loss
from unibert_kernels.paths import ADVERSARY_PATHS, DISTILLATION_PATHS, MLM_HEAD_PATHS

__all__ = [
    "ADVERSARY_PATHS",
    "DISTILLATION_PATHS",
    "MLM_HEAD_PATHS",
    "AdversaryOutput",
    "DistillationOutput",
    "LanguageDiscriminator",
    "MLMHeadOutput",
    "adversary_loss",
    "distillation_loss",
    "mlm_head_loss",
]
