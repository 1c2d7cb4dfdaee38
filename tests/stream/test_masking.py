import numpy as np
import pytest

from unibert.corpus.special_ids import OWN_SPECIAL_IDS
from unibert.stream.masking import mask
from unibert.stream.randomness import Purpose
from unibert.stream.sequences import MaskedSequences, Sequences
from unibert.stream.vocabulary import Vocabulary

VOCAB_SIZE = 300
VOCABULARY = Vocabulary(VOCAB_SIZE, OWN_SPECIAL_IDS)


def packed(num_sequences: int, sequence_length: int, seed: int = 0) -> Sequences:
    ids = np.random.default_rng(seed).integers(5, VOCAB_SIZE, (num_sequences, sequence_length)).astype(np.int32)
    ids[:, 0], ids[:, -3], ids[:, -2:] = 2, 3, 0
    ids[:, 4] = 1
    return Sequences(
        input_ids=ids,
        documents_per_sequence=np.ones(num_sequences, np.int64),
        document_lengths=np.full(num_sequences, sequence_length - 2),
        document_languages=np.zeros(num_sequences, np.int64),
        origins=["x"] * num_sequences,
    )


def masked(sequences: Sequences, rate: float = 0.3, first_sequence: int = 0, **changes: float) -> MaskedSequences:
    shares = {"mask_share": 0.8, "random_share": 0.1} | changes
    return mask(
        sequences,
        seed=11,
        purpose=Purpose.MASKING,
        first_sequence=first_sequence,
        rate=rate,
        vocabulary=VOCABULARY,
        **shares,
    )


@pytest.mark.parametrize("rate", [0.15, 0.3, 1.0])
def test_rates(rate: float) -> None:
    sequences = packed(2000, 128)
    result = masked(sequences, rate)
    ordinary = sequences.input_ids >= 5
    chosen = result.labels != -100
    # 2000 * 124 Bernoulli draws: five standard deviations are below 0.005.
    assert chosen[ordinary].mean() == pytest.approx(rate, abs=0.005)
    assert (result.labels[chosen] == sequences.input_ids[chosen]).all()
    assert (result.input_ids[~chosen] == sequences.input_ids[~chosen]).all()
    shown, original = result.input_ids[chosen], result.labels[chosen]
    # At least 37,000 masked tokens: five standard deviations are below 0.011.
    assert (shown == 4).mean() == pytest.approx(0.8, abs=0.011)
    assert ((shown != 4) & (shown != original)).mean() == pytest.approx(0.1, abs=0.011)
    assert (shown == original).mean() == pytest.approx(0.1, abs=0.011)


def test_special_tokens_are_never_masked() -> None:
    sequences = packed(500, 64)
    result = masked(sequences, 1.0)
    special = sequences.input_ids < 5
    assert (result.labels[special] == -100).all()
    assert (result.input_ids[special] == sequences.input_ids[special]).all()
    assert (result.labels[~special] != -100).all()


def test_random_tokens_span_the_whole_vocabulary() -> None:
    sequences = packed(2000, 128)
    result = masked(sequences, 1.0, mask_share=0.0, random_share=1.0)
    drawn = result.input_ids[result.labels != -100]
    # 244,000 draws over 295 ids, about 830 each: seven standard deviations are 200.
    counts = np.bincount(drawn, minlength=VOCAB_SIZE)
    assert counts[:5].sum() == 0
    assert counts[5:].min() > 600
    assert counts[5:].max() < 1060
    assert len(counts) == VOCAB_SIZE


def test_every_sequence_with_ordinary_tokens_has_a_masked_one() -> None:
    sequences = packed(300, 12)
    sequences.input_ids[7, 1:9] = 1
    result = masked(sequences, 1e-6)
    per_sequence = (result.labels != -100).sum(axis=1)
    assert per_sequence[7] == 0
    assert (np.delete(per_sequence, 7) == 1).all()
    positions = np.argmax(result.labels != -100, axis=1)
    assert set(positions) >= {1, 2, 3, 5, 6, 7, 8}, "the forced position is not spread over the sequence"


def test_a_rate_of_0_masks_nothing() -> None:
    sequences = packed(50, 64)
    result = masked(sequences, 0.0)
    assert (result.labels == -100).all()
    assert (result.input_ids == sequences.input_ids).all()


def test_masks_depend_on_the_sequence_not_on_the_call() -> None:
    sequences = packed(64, 30)
    whole = masked(sequences, first_sequence=1000)
    for sequence in (0, 17, 63):
        alone = masked(sequences.part(sequence, sequence + 1), first_sequence=1000 + sequence)
        assert (alone.input_ids == whole.input_ids[sequence]).all()
        assert (alone.labels == whole.labels[sequence]).all()
        assert alone.sequence_indices.tolist() == [whole.sequence_indices[sequence]]
    same_text = Sequences(**vars(sequences) | {"input_ids": np.repeat(sequences.input_ids[:1], 64, axis=0)})
    assert len({sequence.tobytes() for sequence in masked(same_text).labels}) == 64
    assert (masked(sequences, first_sequence=64).labels != masked(sequences).labels).any()
