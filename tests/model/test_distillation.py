import pytest
import torch

from unibert.model import distillation
from unibert.model.config import ModelConfig
from unibert.model.distillation import AttentionProjections, hidden_loss, relation_loss
from unibert.model.encoder import build_masked_lm
from unibert.stream.batch import document_spans


def projections(seed: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second, third = torch.randn(3, 2, 7, width, generator=generator, dtype=torch.float64)
    return first, second, third


DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, -1, -1], [2, 2, 2, 2, 2, 2, 2]])
SPANS = document_spans(DOCUMENTS.numpy())


def test_kept_projections_are_those_of_the_layer_counted_from_one():
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    model = build_masked_lm(ModelConfig(architecture="bert", config=sizes), 50, 8).eval()
    kept = {layer: AttentionProjections(model, layer) for layer in (1, 3, -1)}
    ids = torch.arange(5, 11)[None]
    states = model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    queries = {layer: projections.take()[0] for layer, projections in kept.items()}
    layers = model.base_model.encoder.layer
    # The layer that makes hidden state k reads hidden state k - 1.
    assert torch.equal(queries[1], layers[0].attention.self.query(states[0]))
    assert torch.equal(queries[3], layers[2].attention.self.query(states[2]))
    assert torch.equal(queries[-1], queries[3])


def naive_relation_loss(student, teacher, heads: int) -> torch.Tensor:
    """Compute the formula token by token and head by head."""
    total = torch.zeros(())
    for a, b in zip(student, teacher, strict=True):
        for row, columns in ((0, [0, 1, 2]), (0, [3, 4]), (1, list(range(7)))):
            for head in range(heads):
                x, y = (part[row, columns].view(len(columns), heads, -1)[:, head].float() for part in (a, b))
                p, q = ((y @ y.T) / y.shape[1] ** 0.5).softmax(-1), ((x @ x.T) / x.shape[1] ** 0.5).softmax(-1)
                total += (p * (p.log() - q.log())).sum() / heads
    return total


@pytest.mark.parametrize("scores", [1 << 24, 64], ids=["at once", "a part at a time"])
def test_relation_loss_is_the_formula_within_documents(scores, monkeypatch):
    monkeypatch.setattr(distillation, "SCORES_AT_ONCE", scores)
    student = tuple(part.clone().requires_grad_() for part in projections(0))
    teacher = projections(1, width=32)
    loss, expected = relation_loss(student, teacher, SPANS, 4), naive_relation_loss(student, teacher, 4)
    # Sums of about 100 fp32 terms of order 1.
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(3 * each, student) for each in (loss, expected)]
    # Terms of order 1 again, which may cancel.
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_relation_loss_of_a_model_with_itself_is_zero_and_has_finite_gradients():
    student = tuple(part.clone().requires_grad_() for part in projections(0))
    loss = relation_loss(student, projections(0), SPANS, 4)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(part.grad).all() for part in student)


def test_hidden_loss_ignores_padding_and_scale():
    student = projections(0)[0]
    assert abs(hidden_loss(student, 3 * student, DOCUMENTS).item()) < 1e-5
    spoiled = student.clone()
    spoiled[DOCUMENTS < 0] = 100.0
    teacher = projections(1)[0]
    assert hidden_loss(spoiled, teacher, DOCUMENTS) == hidden_loss(student, teacher, DOCUMENTS)
    assert hidden_loss(student, -student, DOCUMENTS).item() == torch.tensor(2.0 * 12).item()
