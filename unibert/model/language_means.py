"""The mean vector of each language over training text, which users subtract from sentence vectors.

Vectors of one language share a part that has nothing to do with a sentence's meaning. Libovický et al. (arXiv
2004.05160) subtract it: retrieval and alignment across languages improve, without any parallel text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unibert.model.attention import PackedDocuments
from unibert.model.distillation import document_means
from unibert.model.encoder import encode
from unibert.stream import Batch


@torch.no_grad()
def language_means(model: PreTrainedModel, batches: Iterable[Batch], languages: Sequence[str]) -> dict[str, Tensor]:
    """Average the mean last hidden states of documents, (H,) fp32 for each language.

    Args:
        model: frozen; its device is used.
        batches: text of all languages; masks are lifted.
        languages: code of each language index of the batches.
    """
    sums = torch.zeros(len(languages), model.config.hidden_size, dtype=torch.float64, device=model.device)
    counts = torch.zeros(len(languages), dtype=torch.float64, device=model.device)
    for batch in batches:
        batch = batch.to(model.device)
        input_ids = torch.where(batch.labels >= 0, batch.labels, batch.input_ids)
        documents = PackedDocuments(batch.document_ids, batch.cu_seqlens, batch.max_seqlen)
        [states] = encode(model, input_ids, batch.position_ids, documents, hidden_states=False)
        means = document_means(states, documents, len(batch.document_languages))
        sums.index_add_(0, batch.document_languages, means.double())
        counts += torch.bincount(batch.document_languages, minlength=len(languages))
    means = (sums / counts[:, None]).float().cpu()
    return {code: means[index] for index, code in enumerate(languages) if counts[index]}
