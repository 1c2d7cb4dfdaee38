"""Masking of packed rows, as a function of the seed and each row's sequence index."""

from __future__ import annotations

import numpy as np

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
) -> MaskedRows:
    """Mask each ordinary token with probability ``rate``, independently; special tokens never.

    A row without any masked position gets one, if it holds an ordinary token. Masked positions show ``<mask>`` with
    probability ``mask_share``, an ordinary token drawn from the whole vocabulary with ``random_share``, their own
    token otherwise (the 80/10/10 of Devlin et al. 2019, arXiv 1810.04805). Row r is sequence ``first_sequence + r``;
    what happens to it depends on (seed, purpose, sequence index, sequence length) and its tokens.
    """
    num_rows, sequence_length = rows.input_ids.shape
    blocks_per_row = -(-sequence_length // WORDS_PER_BLOCK)
    words = random_words(
        num_rows * blocks_per_row * WORDS_PER_BLOCK,
        seed,
        purpose,
        sequence_length,
        first_block=first_sequence * blocks_per_row,
    ).reshape(num_rows, -1)[:, :sequence_length]

    # A word's high half picks its position, the low half then decides what the position shows.
    maskable = rows.input_ids >= NUM_SPECIAL_TOKENS
    threshold = max(int(rate * 2**32), 1) << 32
    masked = (words <= np.uint64(threshold - 1)) & maskable
    for row in np.flatnonzero(~masked.any(axis=1) & maskable.any(axis=1)):
        masked[row, np.where(maskable[row], words[row], np.uint64(2**64 - 1)).argmin()] = True

    position = np.flatnonzero(masked)
    own = rows.input_ids.ravel()[position]
    choice = (words[masked] & np.uint64(2**32 - 1)) * 2.0**-32
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
