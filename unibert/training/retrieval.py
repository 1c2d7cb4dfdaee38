"""Retrieval of translations and a language probe during training, which do not depend on the world size.

The vectors are those that ``unibert evaluate --layers=-1`` makes with the exported model, but in the run's precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig

from unibert.errors import UserError, short_message
from unibert.evaluation.aligned import read_aligned
from unibert.evaluation.config import MAX_LENGTH
from unibert.evaluation.geometry import vector_geometry
from unibert.evaluation.language_probe import draw_probe_sentences, linear_accuracy, probe_split
from unibert.evaluation.retrieval import mean_accuracy
from unibert.evaluation.sentence_tokens import SentenceTokenizer, length_batches
from unibert.model.architectures import longest_document
from unibert.stream import Batch
from unibert.stream.sequences import NOT_MASKED, MaskedSequences
from unibert.training.config import RunConfig
from unibert.training.metrics import nine_digits
from unibert.training.ranks.collective_counter import counted_collective
from unibert.training.ranks.collectives import gather_objects, run_on_rank_0, sum_over_ranks
from unibert.training.ranks.placement import Placement

_SEED = 0
"""Seed of the probe's sample and split, the default of ``unibert evaluate``."""


@dataclass(frozen=True)
class RetrievalSentences:
    """N sentences in batches that are the same on all ranks and at every world size, and what is asked about them."""

    sets: list[dict[str, slice]]
    """Indices of the sentences of each aligned set, by language."""
    batches: list[tuple[list[int], Batch]]
    """Indices of the sentences in each batch, and the batch, with one sentence a sequence."""
    probed: np.ndarray
    """Indices of the sentences of the language probe, (P,)."""
    languages: np.ndarray
    """Language number of each of them, (P,)."""
    split: tuple[np.ndarray, np.ndarray]
    """See `unibert.evaluation.language_probe.probe_split`."""

    @property
    def chance(self) -> dict[str, float]:
        """What vectors without any information would score."""
        lines = [next(iter(rows.values())) for rows in self.sets]
        return {
            "retrieval_chance": nine_digits(fmean(1 / (one.stop - one.start) for one in lines)),
            "probe_chance": nine_digits(1 / len(set(self.languages))),
        }


def read_retrieval_sentences(config: RunConfig, model: PreTrainedConfig, pad_id: int) -> RetrievalSentences:
    """Read and tokenize the sentences of ``training.retrieval``.

    Args:
        config: the run.
        model: configuration of the student.
        pad_id: padding id of the corpus.

    Raises:
        UserError: if there are no such sentences, too few for the probe, or the corpus has no tokenizer for them.
    """
    training = config.training
    assert training.retrieval is not None
    try:
        aligned_sets = read_aligned(Path(training.retrieval), training.retrieval_sentences)
    except UserError as error:
        raise UserError(f"training.retrieval: {error}") from error
    sample = draw_probe_sentences(aligned_sets, training.retrieval_sentences, _SEED)
    split = probe_split(sample.languages, sample.groups, _SEED)
    if split is None:
        raise UserError(
            f"training.retrieval: the language probe needs more sentences than those of {training.retrieval}, which "
            "leave a language without any to train or to test on; raise training.retrieval_sentences, or leave out "
            "languages with few lines"
        )
    sets: list[dict[str, slice]] = []
    sentences: list[str] = []
    index_of: dict[tuple[str, str], int] = {}
    for aligned in aligned_sets:
        sets.append({})
        for language, lines in aligned.sentences.items():
            start = len(sentences)
            sets[-1][language] = slice(start, start + len(lines))
            index_of |= {(language, line): start + place for place, line in enumerate(lines)}
            sentences += lines
    probed = [
        index_of[sample.names[label], line] for line, label in zip(sample.sentences, sample.languages, strict=True)
    ]
    token_ids = _tokenizer(Path(config.corpus) / "tokenizer", model).token_ids(sentences)
    # A training step has room for as many tokens, with gradients.
    batch_tokens = training.micro_batch_size * min(training.timeline().sequence_lengths)
    batches = [
        (indices, _batch([token_ids[index] for index in indices], pad_id))
        for indices in length_batches([len(ids) for ids in token_ids], batch_tokens)
    ]
    return RetrievalSentences(sets, batches, np.array(probed), sample.languages, split)


def _tokenizer(folder: Path, model: PreTrainedConfig) -> SentenceTokenizer:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers passes on whatever its parts raise
        raise UserError(
            f"training.retrieval: {folder} has no tokenizer for the sentences ({short_message(error)}); build the "
            "corpus again"
        ) from error
    return SentenceTokenizer(tokenizer, max_length=min(MAX_LENGTH, longest_document(model)))


def _batch(token_ids: Sequence[Sequence[int]], pad_id: int) -> Batch:
    lengths = np.array([len(ids) for ids in token_ids])
    input_ids = np.full((len(token_ids), lengths.max()), pad_id, dtype=np.int32)
    for row, ids in zip(input_ids, token_ids, strict=True):
        row[: len(ids)] = ids
    sequences = MaskedSequences(
        input_ids=input_ids,
        documents_per_sequence=np.ones_like(lengths),
        document_lengths=lengths,
        document_languages=np.zeros_like(lengths),
        origins=[""] * len(token_ids),
        labels=np.full_like(input_ids, NOT_MASKED),
        sequence_indices=np.arange(len(token_ids)),
    )
    return Batch.from_sequences(sequences, 0, len(token_ids))


def retrieval_metrics(engine: Any, sentences: RetrievalSentences, placement: Placement) -> dict[str, float]:
    """Measure the model as it is. All ranks share the passes, and rank 0 computes the figures, which all return.

    Returns:
        ``retrieval_raw``, ``retrieval_centred`` and ``retrieval_margin``, the mean top-1 accuracies over all
        directions; ``probe_linear``, balanced accuracy; ``retrieval_chance`` and ``probe_chance``; and the figures of
        `unibert.evaluation.geometry.vector_geometry` as ``geometry_…``.

    Raises:
        AgreedError: if a vector is not finite.
    """
    vectors = _sentence_vectors(engine, sentences, placement)
    measured = gather_objects(run_on_rank_0(lambda: _figures(vectors, sentences)))[0]
    assert measured is not None
    return measured


@torch.no_grad()
def _sentence_vectors(engine: Any, sentences: RetrievalSentences, placement: Placement) -> Tensor:
    """Return the mean last hidden state of each sentence, (N, H) fp32, on every rank."""
    batches, world_size = sentences.batches, placement.world_size
    vectors: Tensor | None = None
    engine.eval()
    # The ranks make the same number of passes, because one may need all of them at once; the last may be in vain.
    for first in range(0, len(batches), world_size):
        indices, batch = batches[min(first + placement.rank, len(batches) - 1)]
        with counted_collective():
            means = engine(batch.to(placement.device), None)
        if vectors is None:
            vectors = means.new_zeros(sum(len(rows) for rows, _ in batches), means.shape[1])
        if first + placement.rank < len(batches):
            vectors[indices] = means
    engine.train()
    assert vectors is not None
    # Each row is zero on all ranks but one, so that the sum is exact.
    return sum_over_ranks(vectors)


def _figures(vectors: Tensor, sentences: RetrievalSentences) -> dict[str, float]:
    if not vectors.isfinite().all():
        raise UserError(
            "training.retrieval: the model gives vectors with NaN or infinite values; the newest checkpoint is kept; "
            "lower optimizer.learning_rate"
        )
    by_set = ({language: vectors[rows] for language, rows in one.items()} for one in sentences.sets)
    probed = vectors.cpu().numpy()[sentences.probed]
    figures = {
        **{f"retrieval_{kind}": accuracy for kind, accuracy in mean_accuracy(by_set, vectors.device).items()},
        "probe_linear": linear_accuracy(probed, sentences.languages, sentences.split),
        **{f"geometry_{name}": value for name, value in vector_geometry(probed, sentences.languages).items()},
    }
    return {name: nine_digits(value) for name, value in figures.items()} | sentences.chance
