import pytest
import torch

from unibert.evaluation.retrieval import centre, headline_layer, margin_accuracy, retrieval_accuracy, top1_accuracy


def test_accuracy_is_exact_on_constructed_vectors():
    # Row 2 of the source lies nearest to target 0 and every target nearest to its own source.
    source = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.0, 0.5]])
    target = torch.tensor([[5.0, 0.0, 0.2], [0.0, 0.1, 0.0], [0.0, 0.0, 3.0]])
    assert top1_accuracy(source, target) == (pytest.approx(2 / 3), 1.0)


def test_the_two_directions_are_not_mixed_up():
    source = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    target = torch.tensor([[1.0, 0.1], [0.0, 1.0]])
    assert top1_accuracy(source, target) == (0.5, 0.5)
    accuracy = retrieval_accuracy({"a": source[None], "b": torch.tensor([[[1.0, 0.0], [1.0, 0.04]]])})
    assert accuracy["a", "b"][0]["raw"] == 1.0
    assert accuracy["b", "a"][0]["raw"] == 0.5


def test_vectors_that_are_all_equal_score_chance():
    assert top1_accuracy(torch.ones(10, 4), torch.ones(10, 4)) == (0.1, 0.1)


def test_the_margin_is_the_published_one():
    """Written as in the paper, pair by pair, in float64."""
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(30, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    target += 0.7 * source

    def cosine(a, b):
        return float(torch.cosine_similarity(a, b, dim=0))

    def neighbourhood(row, others):
        return sum(sorted((cosine(row, other) for other in others), reverse=True)[:4]) / 8

    margins = torch.tensor(
        [[cosine(a, b) - neighbourhood(a, target) - neighbourhood(b, source) for b in target] for a in source]
    )
    forward, backward = (margins.argmax(dim=dim) == torch.arange(30) for dim in (1, 0))
    assert margin_accuracy(source, target) == (float(forward.double().mean()), float(backward.double().mean()))
    assert margin_accuracy(source, target) != top1_accuracy(source, target)


def test_few_rows_have_few_neighbours():
    assert margin_accuracy(torch.eye(2), torch.eye(2)) == (1.0, 1.0)


def test_centring_removes_a_language_offset():
    generator = torch.Generator().manual_seed(0)
    meaning = torch.randn(200, 16, generator=generator)
    # Each language repeats the meaning, in a corner of its own that outweighs it.
    vectors = {language: (meaning + 20 * torch.randn(16, generator=generator))[None] for language in ("a", "b", "c")}
    accuracy = retrieval_accuracy(vectors)
    assert set(accuracy) == {(x, y) for x in "abc" for y in "abc" if x != y}
    for (entry,) in accuracy.values():
        assert entry["centred"] == 1.0
        assert entry["raw"] < 0.9
    torch.testing.assert_close(centre(vectors["a"]).mean(dim=1), torch.zeros(1, 16), atol=1e-5, rtol=0)


def test_layers_are_scored_one_by_one():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 100, 8, generator=generator)
    meaning = torch.randn(100, 8, generator=generator)
    accuracy = retrieval_accuracy({"a": torch.stack([noise[0], meaning]), "b": torch.stack([noise[1], meaning])})
    first, second = accuracy["a", "b"]
    assert first["raw"] < 0.1
    assert second["raw"] == 1.0


@pytest.mark.parametrize(("blocks", "layer"), [(12, 6), (7, 4), (2, 1), (22, 11)])
def test_the_headline_layer_is_the_middle(blocks, layer):
    assert headline_layer(blocks + 1) == layer
