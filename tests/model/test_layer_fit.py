"""A student's start from its teacher's layers, fitted in closed form and narrowed."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.model.test_attention import LENGTH, VOCAB, masked_lm, packed
from tests.model.test_teachers import batch_of
from unibert.errors import UserError
from unibert.model.attention import PackedDocuments
from unibert.model.config import ModelConfig
from unibert.model.distiller import PrincipalPlane
from unibert.model.encoder import build_masked_lm, encode
from unibert.model.layer_fit import LayerFit, planes_needed
from unibert.model.teacher import Teacher

ARCHITECTURES = ("bert", "roberta")
WIDTH = 128
SIZES = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 256, "num_hidden_layers": 6}


def teacher(architecture: str, **settings):
    """A model whose biases and norms are not trivial, and in which one head of four hardly matters."""
    model = masked_lm(architecture, **SIZES, **settings).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.base_model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    for block in model.base_model.encoder.layer:
        block.attention.output.dense.weight[:, 32:64] *= 0.05
    return model


def batch(seed: int, *, num_sequences: int = 64):
    """A batch with some tokens masked, in which frequent tokens are frequent as in text."""
    rows = packed(([25, 25], [40]) * (num_sequences // 2))
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(rows.ids.shape, generator=generator) ** 3
    rows.ids.copy_(torch.where(rows.document_ids >= 0, (5 + ranks * (VOCAB - 5)).long(), 0))
    masked = (torch.rand(rows.ids.shape, generator=generator) < 0.15) & (rows.document_ids >= 0)
    return batch_of(rows, masked)


def states(model, sequences):
    """Return the hidden states of clean text, (layers + 1, tokens, H)."""
    ids = torch.where(sequences.labels >= 0, sequences.labels, sequences.input_ids)
    documents = PackedDocuments(sequences.document_ids, sequences.cu_seqlens, sequences.max_seqlen)
    with torch.no_grad():
        found = encode(model.eval(), ids, sequences.position_ids, documents, hidden_states=True)
    return torch.stack(found)[:, sequences.document_ids >= 0]


def student_of(folder, layers, **config):
    settings = ModelConfig(initialize_from=str(folder), initialize_layers=layers, initialize_fit=True, config=config)
    return build_masked_lm(settings, VOCAB, LENGTH)


def fitted(student, model, layers, planes=None):
    fit = LayerFit(student, Teacher(model, clean=True), layers, planes or {})
    for seed in range(6):
        fit.add(batch(seed))
    fit.fit()
    return student


def planes_of(model, layers, width):
    """The principal components of the teacher's states, turned at random, with each layer's mean."""
    sample = torch.cat([states(model, batch(seed)) for seed in range(6)], dim=1)
    centred = sample[-1] - sample[-1].mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))
    directions = (vectors[:, -width:] @ turn).T.contiguous()
    return {layer: PrincipalPlane(sample[layer].mean(dim=0), directions) for layer in planes_needed(layers)}


def similarity(ours, theirs):
    return F.cosine_similarity(ours - ours.mean(dim=0), theirs - theirs.mean(dim=0), dim=-1).mean().item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_student_with_all_layers_stays_its_teacher(architecture, tmp_path):
    model = teacher(architecture)
    model.save_pretrained(tmp_path)
    layers = list(range(6))
    student = fitted(student_of(tmp_path, layers), model, layers)
    unseen = batch(100)
    # Six layers of fp32 sums, and targets that go through the inverse of each layer norm.
    torch.testing.assert_close(states(student, unseen), states(model, unseen), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_picked_layers_come_closer_to_the_teacher_on_unseen_text(architecture, tmp_path):
    model = teacher(architecture)
    model.save_pretrained(tmp_path)
    layers, unseen = [0, 3, 5], batch(100)
    student = student_of(tmp_path, layers)
    picked = copy.deepcopy(student)
    before, after = (
        similarity(states(one, unseen)[-1], states(model, unseen)[-1])
        for one in (picked, fitted(student, model, layers))
    )
    assert after > before + 0.05
    means = [states(one, unseen)[-1].mean(dim=0) for one in (picked, student, model)]
    assert (means[1] - means[2]).norm() < 0.3 * (means[0] - means[2]).norm()
    kept = ("query", "key", "value")
    for ours, theirs in zip(student.base_model.encoder.layer, picked.base_model.encoder.layer, strict=True):
        assert all(
            torch.equal(getattr(ours.attention.self, name).weight, getattr(theirs.attention.self, name).weight)
            for name in kept
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_narrowed_student_starts_above_its_bag_of_pieces(architecture, tmp_path):
    # Random weights of the usual size for this test have no directions to spare.
    model = teacher(architecture, initializer_range=0.1)
    model.save_pretrained(tmp_path)
    layers, unseen = [0, 2, 5], batch(100)
    student = student_of(tmp_path, layers, hidden_size=96, intermediate_size=200)
    assert student.config.num_attention_heads == 3
    planes = planes_of(model, layers, 96)
    ours, theirs = states(fitted(student, model, layers, planes), unseen), states(model, unseen)
    # Behind each layer the student has the teacher's state, projected.
    found = [similarity(ours[0], planes[0].project(theirs[0]))]
    found += [
        similarity(ours[i], planes[layer + 1].project(theirs[layer + 1])) for i, layer in enumerate(layers, start=1)
    ]
    bag = similarity(ours[0], planes[6].project(theirs[6]))
    assert found[0] > 0.98
    assert found[1] > 0.85
    assert found[-1] > bag + 0.3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_narrowed_matrices_compute_what_the_teachers_do(architecture, tmp_path):
    """Of states in the plane, for the three heads that matter and the neurons that are kept."""
    model = teacher(architecture, initializer_range=0.1)
    model.save_pretrained(tmp_path)
    layers = [0, 5]
    planes = planes_of(model, layers, 96)
    student = fitted(student_of(tmp_path, layers, hidden_size=96), model, layers, planes)
    plane = planes[1]
    projected = torch.randn(20, 96)
    whole = projected @ plane.directions + plane.mean
    ours, theirs = student.base_model.encoder.layer[1], model.base_model.encoder.layer[5]
    kept = torch.cat([torch.arange(32), torch.arange(64, 128)])
    for name in ("query", "key", "value"):
        actual, expected = (getattr(block.attention.self, name) for block in (ours, theirs))
        # Products of 128 fp32 terms of order 1.
        torch.testing.assert_close(actual(projected), expected(whole)[:, kept], atol=1e-4, rtol=1e-4)
    weight = theirs.intermediate.dense.weight @ plane.directions.T
    torch.testing.assert_close(ours.intermediate.dense.weight, weight, atol=1e-5, rtol=1e-4)


def test_a_layer_may_be_taken_twice(tmp_path):
    model = teacher("bert")
    model.save_pretrained(tmp_path)
    layers, unseen = [0, 0, 5], batch(100)
    student = student_of(tmp_path, layers)
    before, after = (
        similarity(states(one, unseen)[-1], states(model, unseen)[-1])
        for one in (copy.deepcopy(student), fitted(student, model, layers))
    )
    assert after > before + 0.05


def test_masks_have_no_part_in_the_fit(tmp_path):
    model = teacher("bert")
    model.save_pretrained(tmp_path)
    layers = [0, 5]

    def fit(*, masked: bool):
        student = student_of(tmp_path, layers)
        fit = LayerFit(student, Teacher(model), layers, {})
        sequences = batch(0)
        if masked:
            sequences.input_ids[sequences.labels >= 0] = 4
        fit.add(sequences)
        fit.fit()
        return student.state_dict()

    plain, with_masks = fit(masked=False), fit(masked=True)
    assert all(torch.equal(plain[name], with_masks[name]) for name in plain)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"hidden_size": 160},
            "model.config.hidden_size: 160 is more than the 128 of .*; model.initialize_fit only narrows",
        ),
        ({"hidden_size": 100}, "heads of .* are 32 wide and are kept whole, so that 3 of them make 96, not 100"),
        ({"hidden_size": 96, "num_attention_heads": 6}, "so that 6 of them make 192, not 96"),
        ({"hidden_size": 96, "max_position_embeddings": 64}, "keeps the .* of .*; leave it out"),
        ({"intermediate_size": 200}, "model.config.intermediate_size: model.initialize_fit keeps the 256 of"),
    ],
)
def test_sizes_that_cannot_be_narrowed_are_refused(config, message, tmp_path):
    teacher("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        student_of(tmp_path, [0, 5], **config)


def test_other_architectures_are_refused(tmp_path):
    masked_lm("modernbert").save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"model.initialize_fit: .* is a modernbert; only bert, roberta and xlm-roberta"
    ):
        student_of(tmp_path, [0, 3])


def test_without_a_fit_other_sizes_are_refused(tmp_path):
    teacher("bert").save_pretrained(tmp_path)
    config = ModelConfig(initialize_from=str(tmp_path), initialize_layers=[0, 5], config={"hidden_size": 96})
    with pytest.raises(UserError, match=r"give model\.config the same sizes, or set model.initialize_fit"):
        build_masked_lm(config, VOCAB, LENGTH)
