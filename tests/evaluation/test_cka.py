"""Debiased CKA against the published formula and its properties."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unibert.evaluation.cka import debiased_cka


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka(first: torch.Tensor, second: torch.Tensor) -> float | None:
    [value] = debiased_cka({"a": first[None], "b": second[None]})["a-b"]
    return value


def related(seed: int, num_rows: int, first_size: int, second_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of two languages, off the origin, that share a part."""
    shared = draw(seed, num_rows, 4)
    return tuple(
        shared @ draw(seed + number, 4, size) + draw(seed + number + 2, num_rows, size) + 5 * draw(seed + 4, size)
        for number, size in ((1, first_size), (2, second_size))
    )


def published_hsic(first: torch.Tensor, second: torch.Tensor) -> float:
    """Equation of Song et al., with kernels (N, N)."""
    n = len(first)
    kernels = [rows @ rows.T for rows in (first, second)]
    k1, k2 = (kernel - kernel.diag().diag() for kernel in kernels)
    one = torch.ones(n, dtype=torch.float64)
    products = (k1 @ k2).trace() - 2 / (n - 2) * (one @ k1 @ k2 @ one)
    return float(products + (one @ k1 @ one) * (one @ k2 @ one) / ((n - 1) * (n - 2))) / (n * (n - 3))


seeds = st.integers(0, 2**30)
sizes = st.integers(1, 12)


@given(seeds, st.integers(4, 40), sizes, sizes)
def test_it_is_the_published_one(seed, num_rows, first_size, second_size):
    first, second = related(seed, num_rows, first_size, second_size)
    expected = published_hsic(first, second)
    expected /= (published_hsic(first, first) * published_hsic(second, second)) ** 0.5
    # The formula on kernels of vectors off the origin cancels some digits of float64.
    assert cka(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(seeds)
def test_it_does_not_see_shift_rotation_and_scale_or_the_order_of_languages(seed):
    first, second = related(seed, 30, 8, 8)
    rotation, _ = torch.linalg.qr(draw(seed, 8, 8))
    moved = 3 * second @ rotation - 7 * draw(seed + 1, 8)
    assert cka(first, moved) == pytest.approx(cka(first, second), rel=1e-9, abs=1e-9)
    assert cka(moved, first) == pytest.approx(cka(first, moved), rel=1e-12)
    assert cka(second, moved) == pytest.approx(1, abs=1e-9)


@given(seeds)
def test_it_sees_a_stretched_direction(seed):
    vectors = draw(seed, 200, 8)
    assert cka(vectors, vectors * torch.tensor([10.0] + [1.0] * 7)) < 0.7


def test_rows_that_do_not_belong_together_score_zero():
    first, second = related(0, 40, 300, 300)
    found = torch.tensor([cka(first, second[draw(seed, 40).argsort()]) for seed in range(200)])
    assert abs(found.mean()) < 4 * found.std() / 200**0.5 < 0.02
    assert cka(first, second) > 4 * found.std()


def test_many_dimensions_make_nothing_alike():
    """As many directions as here make the biased estimate large."""
    first, second = draw(0, 40, 300), draw(1, 40, 300)
    assert abs(cka(first, second)) < 0.1
    kernels = [centred @ centred.T for centred in (first - first.mean(dim=0), second - second.mean(dim=0))]
    assert (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm()) > 0.8


def test_every_pair_and_layer_has_its_own():
    languages = {name: torch.stack(related(seed, 25, 6, 6)) for seed, name in enumerate("abc")}
    found = debiased_cka(languages)
    assert list(found) == ["a-b", "a-c", "b-c"]
    for a, b in combinations("abc", 2):
        assert found[f"{a}-{b}"] == [cka(languages[a][layer], languages[b][layer]) for layer in range(2)]


def test_float32_is_enough():
    """Vectors in float32 with a large common part, as encoders give them."""
    first, second = related(3, 200, 32, 32)
    rounded = [(rows + 100).float() for rows in (first, second)]
    # Components of 100 are rounded to 4e-6 of those that differ, which have a spread of about 2.
    assert cka(*rounded) == pytest.approx(cka(first, second), abs=1e-5)


@pytest.mark.parametrize("num_rows", [2, 3])
def test_too_few_rows_have_none(num_rows):
    assert cka(draw(0, num_rows, 5), draw(1, num_rows, 5)) is None


@given(seeds, st.integers(0, 1))
def test_vectors_that_are_all_equal_or_all_but_one_have_none(seed, num_others):
    equal = draw(seed, 5).float().repeat(30, 1)
    equal[:num_others] += 1
    assert cka(equal, draw(seed, 30, 5)) is None
    assert cka(draw(seed, 30, 5), equal) is None
