"""Masking of packed sequences, as a function of the seed and each sequence's sequence index."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unibert.stream.randomness import WORDS_PER_BLOCK, Purpose, random_words
from unibert.stream.sequences import MASK, NOT_MASKED, NUM_SPECIAL_TOKENS, MaskedSequences, Sequences

_TOKENS_AT_A_TIME = 1 << 15
"""So many keep their numbers and masks in the processor's cache."""


def mask(
    sequences: Sequences,
    *,
    seed: int,
    purpose: Purpose,
    first_sequence: int,
    rate: float,
    mask_share: float,
    random_share: float,
    vocab_size: int,
    word_starts: npt.NDArray[np.bool_] | None = None,
) -> MaskedSequences:
    """Mask each ordinary token with probability ``rate``, independently; special tokens never.

    With ``word_starts``, (V,), which tells the pieces that begin a word, the tokens of a word are masked together or
    not at all. A sequence without any masked position gets one, or one word, if it holds an ordinary token. Masked
    positions show ``<mask>`` with probability ``mask_share``, an ordinary token drawn from the whole vocabulary with
    ``random_share``, their own token otherwise (the 80/10/10 of Devlin et al. 2019, arXiv 1810.04805). Row r is
    sequence ``first_sequence + r``; what happens to it depends on (seed, purpose, sequence index, sequence length) and
    its tokens.
    """
    num_sequences, sequence_length = sequences.input_ids.shape
    input_ids, labels = sequences.input_ids.copy(), np.full_like(sequences.input_ids, NOT_MASKED)
    sequences_at_a_time = max(1, _TOKENS_AT_A_TIME // sequence_length)
    for first in range(0, num_sequences, sequences_at_a_time):
        own = sequences.input_ids[first : first + sequences_at_a_time]
        blocks_per_sequence = -(-sequence_length // WORDS_PER_BLOCK)
        numbers = random_words(
            len(own) * blocks_per_sequence * WORDS_PER_BLOCK,
            seed,
            purpose,
            sequence_length,
            first_block=(first_sequence + first) * blocks_per_sequence,
        ).reshape(len(own), -1)[:, :sequence_length]
        position = np.flatnonzero(_pick(own, numbers, rate, word_starts))
        chosen = own.ravel()[position]
        labels[first : first + sequences_at_a_time].ravel()[position] = chosen
        input_ids[first : first + sequences_at_a_time].ravel()[position] = _show(
            chosen, numbers.ravel()[position], mask_share, random_share, vocab_size
        )
    return MaskedSequences(
        **vars(sequences) | {"input_ids": input_ids},
        labels=labels,
        sequence_indices=np.arange(first_sequence, first_sequence + num_sequences),
    )


def _pick(
    input_ids: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.uint64],
    rate: float,
    word_starts: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.bool_]:
    """The positions to mask, (R, S): by the high halves of their numbers."""
    maskable = input_ids >= NUM_SPECIAL_TOKENS
    threshold = max(int(rate * 2**32), 1) << 32
    picks = numbers if word_starts is None else _shared_by_words(numbers, input_ids, maskable, word_starts)
    masked = (picks <= np.uint64(threshold - 1)) & maskable
    for sequence in np.flatnonzero(~masked.any(axis=1) & maskable.any(axis=1)):
        masked[sequence] = maskable[sequence] & (picks[sequence] == picks[sequence, maskable[sequence]].min())
    return masked


def _show(
    own: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.uint64],
    mask_share: float,
    random_share: float,
    vocab_size: int,
) -> npt.NDArray[np.int32]:
    """What masked positions show instead of their own tokens, (N,): by the low halves of their numbers."""
    choice = (numbers & np.uint64(2**32 - 1)) * 2.0**-32
    shown = np.where(choice < mask_share, np.int32(MASK), own)
    randomised = np.flatnonzero((choice >= mask_share) & (choice < mask_share + random_share))
    num_ordinary = vocab_size - NUM_SPECIAL_TOKENS
    drawn = ((choice[randomised] - mask_share) / random_share * num_ordinary).astype(np.int32)
    shown[randomised] = NUM_SPECIAL_TOKENS + np.minimum(drawn, num_ordinary - 1)
    return shown


def _shared_by_words(
    numbers: npt.NDArray[np.uint64],
    input_ids: npt.NDArray[np.int32],
    maskable: npt.NDArray[np.bool_],
    word_starts: npt.NDArray[np.bool_],
) -> npt.NDArray[np.uint64]:
    """Every position gets the number of its word's first, (R, S).

    A document's first token belongs to the special token before it or begins a word, which comes to the same.
    """
    begins = word_starts[input_ids] | ~maskable
    begins[:, 0] = True
    first = np.flatnonzero(begins)
    return numbers.ravel()[np.repeat(first, np.diff(first, append=begins.size))].reshape(numbers.shape)
