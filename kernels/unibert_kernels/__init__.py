"""Loss kernels for compact multilingual encoders that never hold logits over the vocabulary for all rows.

There are three losses. Each is a function of tensors that returns a named tuple of device tensors and never waits for
the device:

- `mlm_head_loss`: linear head and softmax cross-entropy over the masked rows;
- `distillation_loss`: KL(teacher || student) between two linear heads;
- `adversary_loss`: language discriminator behind gradient reversal (`LanguageDiscriminator` owns its parameters).

Each works inside torch.compile, as one operator of torch.library without a graph break, and inside activation
checkpointing.

The docstrings of `mlm_head`, `distillation` and `adversary` hold the mathematics, that of `chunked` the memory layout,
that of `operators` the choice of a path in eager mode and compiled; `reference` holds naive float64 implementations.
The package imports only torch, and Triton where one of its paths runs.
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
