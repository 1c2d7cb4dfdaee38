"""Masking of packed rows, as a function of the seed and each row's sequence index."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unibert.stream.randomness import WORDS_PER_BLOCK, Purpose, random_words
from unibert.stream.rows import MASK, NOT_MASKED, NUM_SPECIAL_TOKENS, MaskedRows, Rows


def mask(
    rows: Rows,
    *,
    seed: int,
    purpose: Purpose,
    first_sequence: int,
    rate: float,
    mask_share: float,
    random_share: float,
    vocab_size: int,
    word_starts: npt.NDArray[np.bool_] | None = None,
) -> MaskedRows:
    """Mask each ordinary token with probability ``rate``, independently; special tokens never.

    With ``word_starts``, (V,), which tells the pieces that begin a word, the tokens of a word are masked together or
    not at all. A row without any masked position gets one, or one word, if it holds an ordinary token. Masked positions
    show ``<mask>`` with probability ``mask_share``, an ordinary token drawn from the whole vocabulary with
    ``random_share``, their own token otherwise (the 80/10/10 of Devlin et al. 2019, arXiv 1810.04805). Row r is
    sequence ``first_sequence + r``; what happens to it depends on (seed, purpose, sequence index, sequence length) and
    its tokens.
    """
    num_rows, sequence_length = rows.input_ids.shape
    blocks_per_row = -(-sequence_length // WORDS_PER_BLOCK)
    numbers = random_words(
        num_rows * blocks_per_row * WORDS_PER_BLOCK,
        seed,
        purpose,
        sequence_length,
        first_block=first_sequence * blocks_per_row,
    ).reshape(num_rows, -1)[:, :sequence_length]

    # The high half of a position's number picks it, the low half then decides what the position shows.
    maskable = rows.input_ids >= NUM_SPECIAL_TOKENS
    threshold = max(int(rate * 2**32), 1) << 32
    picks = numbers if word_starts is None else _shared_by_words(numbers, rows.input_ids, maskable, word_starts)
    masked = (picks <= np.uint64(threshold - 1)) & maskable
    for row in np.flatnonzero(~masked.any(axis=1) & maskable.any(axis=1)):
        masked[row] = maskable[row] & (picks[row] == picks[row, maskable[row]].min())

    position = np.flatnonzero(masked)
    own = rows.input_ids.ravel()[position]
    choice = (numbers[masked] & np.uint64(2**32 - 1)) * 2.0**-32
    shown = np.where(choice < mask_share, np.int32(MASK), own)
    randomised = np.flatnonzero((choice >= mask_share) & (choice < mask_share + random_share))
    num_ordinary = vocab_size - NUM_SPECIAL_TOKENS
    drawn = ((choice[randomised] - mask_share) / random_share * num_ordinary).astype(np.int32)
    shown[randomised] = NUM_SPECIAL_TOKENS + np.minimum(drawn, num_ordinary - 1)

    input_ids, labels = rows.input_ids.copy(), np.full_like(rows.input_ids, NOT_MASKED)
    input_ids.ravel()[position] = shown
    labels.ravel()[position] = own
    return MaskedRows(
        **vars(rows) | {"input_ids": input_ids},
        labels=labels,
        sequence_indices=np.arange(first_sequence, first_sequence + num_rows),
    )


def _shared_by_words(
    numbers: npt.NDArray[np.uint64],
    input_ids: npt.NDArray[np.int32],
    maskable: npt.NDArray[np.bool_],
    word_starts: npt.NDArray[np.bool_],
) -> npt.NDArray[np.uint64]:
    """Every position gets the number of its word's first, (R, S); a document's first token begins a word."""
    begins = word_starts[input_ids] | ~maskable
    begins[:, 1:] |= ~maskable[:, :-1]
    begins[:, 0] = True
    first = np.flatnonzero(begins)
    return numbers.ravel()[np.repeat(first, np.diff(first, append=begins.size))].reshape(numbers.shape)
