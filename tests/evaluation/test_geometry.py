import numpy as np
import pytest

from unibert.evaluation.geometry import principal_plane, subtract_language_means, vector_geometry

LABELS = np.repeat([0, 1], 2000)


def test_a_ball_fills_its_directions_and_has_no_language():
    ball = np.random.default_rng(0).normal(size=(4000, 8))
    geometry = vector_geometry(ball, LABELS)
    # Sampling error of 4,000 rows: a few per cent.
    assert geometry["variance"] == pytest.approx(8, rel=0.05)
    assert geometry["participation_ratio"] == pytest.approx(8, rel=0.05)
    assert geometry["mean_cosine"] == pytest.approx(0, abs=0.01)
    assert geometry["language_share"] == pytest.approx(0, abs=0.01)


def test_collapse_and_language_offsets_show():
    noise = np.random.default_rng(0).normal(size=(4000, 8))
    collapsed = vector_geometry(np.ones(8) + 0.001 * noise, LABELS)
    assert collapsed["variance"] < 1e-4
    assert collapsed["mean_cosine"] > 0.999
    # Two means at distance 20 along one axis: 100 of the 108 units of variance lie between them.
    apart = vector_geometry(noise + 20 * LABELS[:, None] * np.eye(8)[0], LABELS)
    assert apart["language_share"] == pytest.approx(100 / 108, abs=0.01)
    assert apart["participation_ratio"] < 1.5


def test_the_isoscore_is_the_published_one():
    """Algorithm 1 of Rudman et al., step by step; a line scores 0, a ball 1."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(300, 6)) @ generator.normal(size=(6, 6)) + 3
    variances = np.linalg.eigvalsh(np.cov(vectors.T))
    size = len(variances)
    normalised = np.sqrt(size) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (size - np.sqrt(size)))
    filled = (size - defect**2 * (size - np.sqrt(size))) ** 2 / size**2
    expected = (size * filled - 1) / (size - 1)
    assert 0.1 < expected < 0.9
    labels = np.arange(300) % 2
    assert vector_geometry(vectors, labels)["isoscore"] == pytest.approx(expected, rel=1e-9)
    line = generator.normal(size=(300, 1)) * np.ones(6)
    assert vector_geometry(line, labels)["isoscore"] == pytest.approx(0, abs=1e-12)
    whitened = (vectors - vectors.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(vectors.T))).T
    assert vector_geometry(whitened, labels)["isoscore"] == pytest.approx(1, abs=1e-9)


def test_constant_vectors_give_finite_figures():
    assert all(np.isfinite(value) for value in vector_geometry(np.ones((10, 4)), np.arange(10) % 2).values())


def test_means_are_over_the_given_rows():
    vectors = np.array([[1.0], [3.0], [100.0], [7.0]])
    languages = np.array([0, 0, 0, 1])
    centred = subtract_language_means(vectors, languages, mean_rows=np.array([0, 1, 3]))
    assert centred.ravel().tolist() == [-1, 1, 98, 0]


def test_the_plane_keeps_the_two_widest_directions():
    vectors = np.random.default_rng(0).normal(size=(500, 6)) * [0.1, 9, 0.1, 0.1, 3, 0.1]
    plane = principal_plane(vectors)
    for axis, component in ((1, 0), (4, 1)):
        assert np.corrcoef(vectors[:, axis], plane[:, component])[0, 1] > 0.99
