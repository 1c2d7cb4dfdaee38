"""Losses over hidden states and mean vectors, for layers and widths of any kind."""

import pytest
import torch
import torch.nn.functional as F

from tests.model.test_attention import masked_lm, packed
from tests.model.test_teachers import batch_of
from unibert.errors import UserError
from unibert.model.attention import PackedDocuments
from unibert.model.config import DistillationConfig
from unibert.model.distillation import document_means
from unibert.model.distiller import Distiller, PrincipalPlane
from unibert.model.encoder import encode
from unibert.model.teacher import Teacher
from unibert.model.teacher_input import Prompt

POOLED = DistillationConfig(teacher="", logits=0, pooled=1.0)
PROMPT = Prompt((400, 401), 1, 0)
# Cosines of 64 to 128 fp32 terms, summed over some hundred tokens.
TOLERANCE = 1e-4


def rows():
    return packed(([25, 3, 20], [30, 20], [7]))


def batch():
    return batch_of(rows(), torch.zeros(3, 50, dtype=torch.bool))


def teacher(**settings):
    return masked_lm("bert", **settings).requires_grad_(False)


def losses(distiller: Distiller, student) -> dict[str, torch.Tensor]:
    sequences = batch()
    documents = PackedDocuments(sequences.document_ids, sequences.cu_seqlens, sequences.max_seqlen)
    states = encode(student, sequences.input_ids, sequences.position_ids, documents, hidden_states=True)
    kept = states if distiller.reads_inner_layers else states[-1:]
    return distiller.hidden_state_losses(distiller.teach(sequences, documents), sequences, documents, kept)


def states_alone(model, *, prompt: Prompt | None = None) -> list[torch.Tensor]:
    """Return the hidden states of each document by itself, (layers + 1, tokens, H)."""
    found = []
    for document in range(6):
        ids = rows().ids[rows().document_ids == document].tolist()
        if prompt is not None:
            ids[prompt.prefix : prompt.prefix] = prompt.ids
        with torch.no_grad():
            output = model.base_model(torch.tensor([ids]), output_hidden_states=True)
        found.append(torch.cat(output.hidden_states))
    return found


def test_means_of_documents_leave_padding_out():
    states = torch.randn(3, 50, 8)
    document_ids = rows().document_ids
    means = document_means(states, PackedDocuments.from_ids(document_ids), 6)
    expected = torch.stack([states[document_ids == document].mean(dim=0) for document in range(6)])
    # Sums of up to 30 fp32 terms of order 1.
    torch.testing.assert_close(means, expected, atol=2e-6, rtol=0)
    # Bounds that no one has read from the device have empty documents at the end.
    counted = PackedDocuments.from_counted_ids(document_ids, 6)
    assert len(counted.cu_seqlens) > len(PackedDocuments.from_ids(document_ids).cu_seqlens)
    assert document_means(states, counted, 6).equal(means)


def test_means_pass_gradients_to_their_document_alone():
    states = torch.randn(3, 50, 8, requires_grad=True)
    document_ids = rows().document_ids
    document_means(states, PackedDocuments.from_ids(document_ids), 6)[2].sum().backward()
    inside = document_ids == 2
    assert torch.all(states.grad[inside] == 1 / 20)
    assert torch.all(states.grad[~inside] == 0)


@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_pooled_compares_mean_vectors_with_those_of_the_plain_teacher(prompt):
    """The teacher's mean includes its prompt, as sentence-transformers has it."""
    student, model = masked_lm("modernbert"), teacher()
    distiller = Distiller(POOLED, student, Teacher(model, prompt=prompt))
    means = [[states[-1].mean(dim=0) for states in states_alone(student)]]
    means.append([states[-1].mean(dim=0) for states in states_alone(model, prompt=prompt)])
    expected = sum(1 - F.cosine_similarity(a, b, dim=0) for a, b in zip(*means, strict=True))
    actual = losses(distiller, student)
    assert actual.keys() == {"pooled"}
    assert actual["pooled"].item() == pytest.approx(expected.item(), rel=TOLERANCE)


def test_hidden_averages_over_pairs_of_layers():
    student, model = masked_lm("modernbert"), teacher(num_hidden_layers=6)
    pairs = [(0, 0), (2, 3), (-1, 6)]
    config = DistillationConfig(teacher="", logits=0, hidden=1.0, hidden_layers=pairs)
    alone = [states_alone(student), states_alone(model)]
    similar = [
        F.cosine_similarity(a[pair[0]], b[pair[1]], dim=-1) for a, b in zip(*alone, strict=True) for pair in pairs
    ]
    expected = (1 - torch.cat(similar)).sum() / len(pairs)
    actual = losses(Distiller(config, student, Teacher(model)), student)["hidden"]
    assert actual.item() == pytest.approx(expected.item(), rel=TOLERANCE)


def test_pca_brings_the_teacher_down_without_parameters():
    """A plane through the first 64 dimensions of a teacher that is twice as wide."""
    student, model = masked_lm("modernbert"), teacher(hidden_size=128)
    distiller = Distiller(DistillationConfig(teacher="", logits=0, hidden=1.0, pooled=1.0), student, Teacher(model))
    assert not list(distiller.parameters())
    assert distiller.plane_layers == [4]
    mean = torch.randn(128)
    distiller.set_planes({4: PrincipalPlane(mean, torch.eye(64, 128))}, torch.device("cpu"))
    alone = [[states[-1] for states in states_alone(one)] for one in (student, model)]
    tokens = torch.cat([F.cosine_similarity(a, (b - mean)[:, :64], dim=-1) for a, b in zip(*alone, strict=True)])
    pooled = [F.cosine_similarity(a.mean(0), (b.mean(0) - mean)[:64], dim=0) for a, b in zip(*alone, strict=True)]
    actual = losses(distiller, student)
    assert actual["hidden"].item() == pytest.approx((1 - tokens).sum().item(), rel=TOLERANCE)
    assert actual["pooled"].item() == pytest.approx(6 - sum(pooled).item(), rel=TOLERANCE)


def test_a_learned_projection_brings_the_student_up():
    student, model = masked_lm("modernbert"), teacher(hidden_size=128)
    config = DistillationConfig(teacher="", logits=0, hidden=1.0, pooled=1.0, projection="learned")
    distiller = Distiller(config, student, Teacher(model))
    assert {name: tuple(p.shape) for name, p in distiller.named_parameters()} == {
        "projections.student4_teacher4.weight": (128, 64),
        "projections.student4_teacher4.bias": (128,),
    }
    sum(losses(distiller, student).values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in distiller.parameters())


@pytest.mark.parametrize(
    ("settings", "width", "sentence"),
    [
        ({"hidden_layers": [(5, 1)]}, 64, r"distillation\.hidden_layers: 5 does not exist in a model of 4 layers"),
        ({"teacher_layer": -5}, 64, r"distillation\.teacher_layer: -5 does not exist in a model of 4 layers"),
        ({}, 32, "pca needs a teacher at least as wide as the student .64., narrow has 32; use learned"),
    ],
)
def test_layers_and_widths_that_do_not_fit(settings, width, sentence):
    config = DistillationConfig(teacher="narrow", logits=0, hidden=1.0, **settings)
    with pytest.raises(UserError, match=sentence):
        Distiller(config, masked_lm("modernbert"), Teacher(teacher(hidden_size=width)))
