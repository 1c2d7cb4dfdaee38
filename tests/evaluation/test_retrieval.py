import torch

from unibert.evaluation.retrieval import accuracy, centre, find_translations


def found(source, target, kind="raw"):
    """What the rows (N, H) of either side find on the other: forward and backward."""
    forward, backward = find_translations({"a": source[None], "b": target[None]})
    assert (forward.direction, backward.direction) == ("a>b", "b>a")
    return forward.rows[kind].tolist(), backward.rows[kind].tolist()


def test_neighbours_are_exact_on_constructed_vectors():
    # Row 2 of the source lies nearest to target 0 and every target nearest to its own source.
    source = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.0, 0.5]])
    target = torch.tensor([[5.0, 0.0, 0.2], [0.0, 0.1, 0.0], [0.0, 0.0, 3.0]])
    assert found(source, target) == ([0, 1, 0], [0, 1, 2])
    assert found(target, source) == ([0, 1, 2], [0, 1, 0])


def test_accuracy_is_the_share_of_queries_that_find_their_own_row():
    assert accuracy(torch.tensor([0, 1, 0, 0])) == 0.5


def test_vectors_that_are_all_equal_score_chance():
    forward, backward = found(torch.ones(10, 4), torch.ones(10, 4))
    assert accuracy(torch.tensor(forward)) == accuracy(torch.tensor(backward)) == 0.1


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
    assert found(source, target, "margin") == (margins.argmax(dim=1).tolist(), margins.argmax(dim=0).tolist())
    assert found(source, target, "margin") != found(source, target)


def test_few_rows_have_few_neighbours():
    assert found(torch.eye(2), torch.eye(2), "margin") == ([0, 1], [0, 1])


def test_centring_removes_a_language_offset():
    generator = torch.Generator().manual_seed(0)
    meaning = torch.randn(200, 16, generator=generator)
    # Each language repeats the meaning, in a corner of its own that outweighs it.
    vectors = {language: (meaning + 20 * torch.randn(16, generator=generator))[None] for language in ("a", "b", "c")}
    by_direction = {one.direction: one.rows for one in find_translations(vectors)}
    assert set(by_direction) == {f"{x}>{y}" for x in "abc" for y in "abc" if x != y}
    for rows in by_direction.values():
        assert accuracy(rows["centred"]) == 1.0
        assert accuracy(rows["raw"]) < 0.9
    torch.testing.assert_close(centre(vectors["a"]).mean(dim=1), torch.zeros(1, 16), atol=1e-5, rtol=0)


def test_layers_are_searched_one_by_one():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 100, 8, generator=generator)
    meaning = torch.randn(100, 8, generator=generator)
    results = find_translations({"a": torch.stack([noise[0], meaning]), "b": torch.stack([noise[1], meaning])})
    by_layer = {(one.layer, one.direction): accuracy(one.rows["raw"]) for one in results}
    assert by_layer[0, "a>b"] < 0.1
    assert by_layer[1, "a>b"] == by_layer[1, "b>a"] == 1.0
