"""Masking of packed sequences, as a function of the seed and of each sequence's index in the run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unibert.stream.randomness import WORDS_PER_BLOCK, Purpose, random_words
from unibert.stream.sequences import NOT_MASKED, MaskedSequences, Sequences
from unibert.stream.vocabulary import Vocabulary

_CHUNK_TOKENS = 1 << 15
"""Tokens to mask at a time: so many random numbers and masks fit into the processor's cache."""


def mask(
    sequences: Sequences,
    *,
    seed: int,
    purpose: Purpose,
    first_sequence: int,
    rate: float,
    mask_share: float,
    random_share: float,
    vocabulary: Vocabulary,
    word_starts: npt.NDArray[np.bool_] | None = None,
) -> MaskedSequences:
    """Mask each ordinary token independently with probability ``rate``; never mask special tokens.

    ``word_starts``, (V,), marks the pieces that begin a word; with it, the tokens of a word are masked together or not
    at all. If a sequence would have no masked position, one ordinary token (or word) of it is masked. Masked positions
    show the mask token with probability ``mask_share``, an ordinary token drawn from the whole vocabulary with
    ``random_share``, and their original token otherwise (80/10/10 in Devlin et al. 2019, arXiv 1810.04805). The first
    sequence has index ``first_sequence`` in the run. The masks of a sequence depend only on its tokens and on (seed,
    purpose, sequence index, sequence length).
    """
    num_sequences, sequence_length = sequences.input_ids.shape
    input_ids, labels = sequences.input_ids.copy(), np.full_like(sequences.input_ids, NOT_MASKED)
    chunk_sequences = max(1, _CHUNK_TOKENS // sequence_length)
    for first in range(0, num_sequences, chunk_sequences):
        chunk = slice(first, first + chunk_sequences)
        originals = sequences.input_ids[chunk]
        blocks_per_sequence = -(-sequence_length // WORDS_PER_BLOCK)
        numbers = random_words(
            len(originals) * blocks_per_sequence * WORDS_PER_BLOCK,
            seed,
            purpose,
            sequence_length,
            first_block=(first_sequence + first) * blocks_per_sequence,
        ).reshape(len(originals), -1)[:, :sequence_length]
        positions = np.flatnonzero(_choose_positions(originals, numbers, rate, vocabulary, word_starts))
        masked = originals.ravel()[positions]
        labels[chunk].ravel()[positions] = masked
        input_ids[chunk].ravel()[positions] = _shown_tokens(
            masked, numbers.ravel()[positions], mask_share, random_share, vocabulary
        )
    return MaskedSequences(
        **vars(sequences) | {"input_ids": input_ids},
        labels=labels,
        sequence_indices=np.arange(first_sequence, first_sequence + num_sequences),
    )


def _choose_positions(
    input_ids: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.uint64],
    rate: float,
    vocabulary: Vocabulary,
    word_starts: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.bool_]:
    """Choose the positions to mask, (R, S), by the high halves of their numbers."""
    if not rate:
        return np.zeros(input_ids.shape, dtype=np.bool_)
    maskable = vocabulary.is_ordinary(input_ids)
    threshold = max(int(rate * 2**32), 1) << 32
    if word_starts is not None:
        numbers = _share_within_words(numbers, input_ids, maskable, word_starts)
    masked = (numbers <= np.uint64(threshold - 1)) & maskable
    for sequence in np.flatnonzero(~masked.any(axis=1) & maskable.any(axis=1)):
        masked[sequence] = maskable[sequence] & (numbers[sequence] == numbers[sequence, maskable[sequence]].min())
    return masked


def _shown_tokens(
    originals: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.uint64],
    mask_share: float,
    random_share: float,
    vocabulary: Vocabulary,
) -> npt.NDArray[np.int32]:
    """Choose what masked positions show instead of their original tokens, (N,), by the low halves of their numbers."""
    choice = (numbers & np.uint64(2**32 - 1)) * 2.0**-32
    shown = np.where(choice < mask_share, np.int32(vocabulary.special_ids.mask), originals)
    randomised = np.flatnonzero((choice >= mask_share) & (choice < mask_share + random_share))
    num_ordinary = len(vocabulary.ordinary_ids)
    drawn = ((choice[randomised] - mask_share) / random_share * num_ordinary).astype(np.int32)
    shown[randomised] = vocabulary.ordinary_ids[np.minimum(drawn, num_ordinary - 1)]
    return shown


def _share_within_words(
    numbers: npt.NDArray[np.uint64],
    input_ids: npt.NDArray[np.int32],
    maskable: npt.NDArray[np.bool_],
    word_starts: npt.NDArray[np.bool_],
) -> npt.NDArray[np.uint64]:
    """Give every position the number of its word's first position, (R, S).

    Whether the first token of a document begins a word or belongs to the special token before it makes no difference.
    """
    begins = word_starts[input_ids] | ~maskable
    begins[:, 0] = True
    first = np.flatnonzero(begins)
    return numbers.ravel()[np.repeat(first, np.diff(first, append=begins.size))].reshape(numbers.shape)
