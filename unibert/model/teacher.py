"""The frozen teacher and its forward pass over a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unibert.model.architectures import head_features
from unibert.model.attention import PackedDocuments
from unibert.model.distillation import document_means
from unibert.model.encoder import encode
from unibert.model.teacher_input import Prompt, TeacherInput, teacher_input
from unibert.stream import Batch


@dataclass(frozen=True)
class Lesson:
    """A forward pass of the teacher over a batch."""

    hidden_states: tuple[Tensor, ...]
    """Embedding output and each layer's output, each (B, T, H_t); only the last if no other was asked for."""
    input: TeacherInput

    def states(self, layer: int) -> Tensor:
        """Return the hidden states of the batch's own tokens, (B, S, H_t); ``layer`` counts from the end, -1 is the
        last."""
        return self.input.at_batch_tokens(self.hidden_states[layer])

    def document_means(self, num_documents: int) -> Tensor:
        """Average the last states of each of the batch's D documents, a prompt's included, (D, H_t) fp32."""
        return document_means(self.hidden_states[-1], self.input.documents, num_documents)


class Teacher:
    """Reads batches as the run's settings say.

    It is no `torch.nn.Module`, so that a module that holds it neither trains nor shards nor saves it.

    Args:
        model: frozen masked language model with the corpus's vocabulary.
        clean: whether it reads the original tokens at the masked positions.
        prompt: tokens that it reads in every document, and the student does not.
        attention: attention path, see `unibert.model.attention`.
    """

    def __init__(
        self, model: PreTrainedModel, *, clean: bool = False, prompt: Prompt | None = None, attention: str = "auto"
    ) -> None:
        self.model = model
        self._clean, self._prompt, self._attention = clean, prompt, attention

    @property
    def depth(self) -> int:
        """Number of layers, which is the number of the last hidden state, counted from 0."""
        return int(self.model.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """Hidden size, H_t."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return self.model.device

    @torch.no_grad()
    def read(self, batch: Batch, documents: PackedDocuments, *, layers: Collection[int] = ()) -> Lesson:
        """Run over a batch.

        Args:
            batch: packed sequences, (B, S).
            documents: where its documents lie.
            layers: hidden states that are needed besides the last, counted from 0.
        """
        view = teacher_input(batch, documents, clean=self._clean, prompt=self._prompt)
        states = encode(
            self.model,
            view.input_ids,
            view.position_ids,
            view.documents,
            hidden_states=any(layer != self.depth for layer in layers),
            attention=self._attention,
        )
        return Lesson(states, view)

    @torch.no_grad()
    def masked_features(self, lesson: Lesson, batch: Batch) -> Tensor:
        """Return the features of the head at the masked positions, (N, H_t)."""
        return head_features(self.model, lesson.states(-1).flatten(0, 1)[batch.masked_positions])


def weights_sha256(model: PreTrainedModel) -> str:
    """Return the SHA-256 (hex) of the encoder's weights, rounded to bf16 so that CPU and GPU agree on it."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.base_model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes())
    return content.hexdigest()
