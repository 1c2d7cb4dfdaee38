"""Teachers: architectures that only teach, what a teacher reads, and those that are refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

from tests.model.test_attention import Packed, alone, difference, packed
from unibert.errors import UserError
from unibert.model.architectures import attention_projections, head_features
from unibert.model.attention import PackedDocuments
from unibert.model.encoder import encode, load_teacher
from unibert.model.teacher_input import Prompt, teacher_input
from unibert.stream import Batch
from unibert.stream.batch import document_spans

VOCAB, PAD = 500, 0
PROMPT = (400, 401, 402)
# Four layers, each of some ten roundings of 2^-24 in a row; documents that see each other differ by 0.2 and more.
TOLERANCE = 5e-6


def deberta(**settings) -> DebertaV2ForMaskedLM:
    """A small model with mDeBERTa's settings, and weights large enough for attention to matter."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 96}
    mdeberta = {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "layer_norm_eps": 1e-7,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    return DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=VOCAB, **sizes, **mdeberta | settings)).eval()


def batch_of(rows: Packed, masked: Tensor) -> Batch:
    """Return packed documents as a batch in which the tokens at ``masked`` show id 4."""
    documents = PackedDocuments.from_ids(rows.document_ids)
    return Batch(
        input_ids=rows.ids.masked_fill(masked, 4),
        labels=rows.ids.masked_fill(~masked, -100),
        position_ids=rows.positions,
        document_ids=rows.document_ids,
        document_languages=torch.zeros(int(rows.document_ids.max()) + 1, dtype=torch.long),
        cu_seqlens=documents.cu_seqlens,
        max_seqlen=documents.max_seqlen,
        masked_positions=masked.flatten().nonzero()[:, 0],
        sequence_indices=torch.arange(len(rows.ids)),
        document_spans=document_spans(rows.document_ids.numpy()),
        origins=[[""] * len(set(row.tolist()) - {-1}) for row in rows.document_ids],
    )


@torch.no_grad()
def test_documents_stay_apart_in_deberta():
    model, rows = deberta(), packed()
    documents = PackedDocuments.from_ids(rows.document_ids)
    states = encode(model, rows.ids, rows.positions, documents, hidden_states=True)
    assert len(states) == 5
    assert difference(states[-1][rows.document_ids >= 0], alone(model, rows)) < TOLERANCE
    [last] = encode(model, rows.ids, rows.positions, documents, hidden_states=False)
    assert torch.equal(last, states[-1])


@torch.no_grad()
def test_the_head_and_the_projections_of_deberta():
    model, ids = deberta(), torch.randint(5, VOCAB, (1, 20))
    decoder = model.get_output_embeddings()
    hidden = model.base_model(input_ids=ids).last_hidden_state
    logits = head_features(model, hidden) @ decoder.weight.T + decoder.bias
    # Logits are of order 10 with these weights, and sums of 64 fp32 terms.
    torch.testing.assert_close(logits, model(input_ids=ids).logits, atol=1e-4, rtol=0)
    assert [module.out_features for module in attention_projections(model, -1)] == [64, 64, 64]


def test_a_clean_input_shows_the_text():
    rows = packed()
    batch = batch_of(rows, (rows.ids % 3 == 0) & (rows.document_ids >= 0))
    documents = PackedDocuments.from_ids(rows.document_ids)
    assert torch.equal(teacher_input(batch, documents, clean=True, prompt=None).input_ids, rows.ids)
    assert torch.equal(teacher_input(batch, documents, clean=False, prompt=None).input_ids, batch.input_ids)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@torch.no_grad()
def test_a_prompt_is_read_in_every_document(prefix):
    model, rows = deberta(), packed(([25, 3, 20], [30, 20], [7], [50]))
    batch = batch_of(rows, torch.zeros_like(rows.ids, dtype=torch.bool))
    documents = PackedDocuments.from_ids(rows.document_ids)
    view = teacher_input(batch, documents, clean=False, prompt=Prompt(PROMPT, prefix, PAD))
    assert view.input_ids.shape == (4, 50 + 3 * len(PROMPT))
    [states] = encode(model, view.input_ids, view.position_ids, view.documents, hidden_states=False)
    at_tokens = view.at_batch_tokens(states)
    for document in range(int(rows.document_ids.max()) + 1):
        inside = rows.document_ids == document
        ids = rows.ids[inside].tolist()
        with_prompt = torch.tensor([ids[:prefix] + list(PROMPT) + ids[prefix:]])
        expected = model.base_model(with_prompt).last_hidden_state[0]
        kept = [place for place in range(with_prompt.shape[1]) if not prefix <= place < prefix + len(PROMPT)]
        assert difference(at_tokens[inside], expected[kept]) < TOLERANCE
        positions = view.position_ids[view.documents.document_ids == document]
        assert positions.tolist() == list(range(len(ids) + len(PROMPT)))


@pytest.mark.parametrize(
    ("settings", "needs_head", "sentence"),
    [
        ({"conv_kernel_size": 3}, False, "has a convolution, which would mix neighbouring documents; choose another"),
        ({"legacy": False}, True, "has no masked-LM head"),
    ],
)
def test_debertas_that_cannot_teach_are_refused(settings, needs_head, sentence, tmp_path: Path):
    deberta(**settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_teacher(tmp_path, "distillation.teacher", needs_head=needs_head)
