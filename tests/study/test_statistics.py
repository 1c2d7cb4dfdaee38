import json
from dataclasses import replace
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unibert.errors import UserError
from unibert.study.statistics import (
    SIGN_PATTERNS,
    TaskScores,
    arm_summary,
    compare_arms,
    hedges_d_z,
    holm,
    percentile_interval,
    permutation_test,
    rank_biserial,
    relative_change,
    relative_improvement_test,
    resample_means,
    resample_seeds,
    wilcoxon_test,
)

SEEDS = (13, 14, 15, 16, 17)
LANGUAGES = ("ar", "de", "el", "es", "hi", "ru", "th", "tr")


def task(random_seed: int, *, improvement: float = 0.02, num_units: int = 8, examples: int = 0) -> TaskScores:
    """Return scores of the arms `adv`, `kd` and `mlm` with variation over seeds, units, and both."""
    random = np.random.default_rng(random_seed)
    units = random.uniform(0.4, 0.7, size=num_units)
    scores, values = {}, {}
    for arm, change in (("mlm", 0.0), ("kd", improvement / 2), ("adv", improvement)):
        noise = random.normal(0, 0.01, (len(SEEDS), 1)) + random.normal(0, 0.01, (len(SEEDS), num_units))
        scores[arm] = units + change + noise
        if examples:
            values[arm] = list(random.random((num_units, len(SEEDS), examples)) < scores[arm].T[..., None])
            scores[arm] = np.stack([of_unit.mean(axis=1) for of_unit in values[arm]], axis=1)
    return TaskScores(SEEDS, LANGUAGES[:num_units], scores, values)


def compare(tasks, arm="adv", reference="mlm", **settings):
    return compare_arms(tasks, arm=arm, reference=reference, **{"seed": 1, "resamples": 500, **settings})


def only(task_scores, **settings):
    """Return the entry of the only task of a study."""
    return compare({"xnli": task_scores}, **settings)["tasks"]["xnli"]


# Means and changes


def test_summary_of_an_arm():
    assert arm_summary(np.array([[0.1, 0.3], [0.5, 0.7]]), ["de", "tr"]) == {
        "mean": pytest.approx(0.4),
        "deviation": pytest.approx(np.sqrt(0.08)),
        "seed_means": pytest.approx([0.2, 0.6]),
        "unit_means": {"de": pytest.approx(0.3), "tr": pytest.approx(0.5)},
    }
    assert arm_summary(np.array([[0.1, 0.3]]), ["de", "tr"])["deviation"] is None


def test_relative_change_needs_a_positive_reference():
    assert relative_change(0.6, 0.5) == pytest.approx(0.2)
    assert relative_change(0.6, 0.0) is None
    assert relative_change(0.6, -0.1) is None


# Permutation tests


def exact_p(whole_numbers: np.ndarray) -> float:
    """Return the share of sign patterns whose sum is at least as far from 0 as the observed one, in whole numbers."""
    sums = [abs(sum(pattern)) for pattern in product(*((number, -number) for number in whole_numbers.tolist()))]
    return float(np.mean([one >= abs(whole_numbers.sum()) for one in sums]))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.1, 0.2, 0.3], 2 / 8),
        ([0.1, 0.2, 0.4, 0.8, 1.6], 2 / 32),
        ([0.1, 0.2, -0.3], 1.0),  # the sum is 0, though not in floating point
        ([0.3, 0.2, -0.1], 4 / 8),  # sums of ±3 ±2 ±1 are ±6, ±4, ±2 and twice 0
        ([0.0, 0.0, 0.0], 1.0),
        ([0.1, 0.0], 1.0),
    ],
)
def test_exact_p_values(differences, p):
    by_seed, by_unit = np.array(differences)[:, None], np.array(differences)[None, :]
    assert permutation_test(by_seed, exchange="seeds", seed=0)["p"] == pytest.approx(p)
    assert permutation_test(by_unit, exchange="units", seed=0)["p"] == pytest.approx(p)


def test_p_values_equal_those_over_all_sign_patterns():
    """Scores of few digits make many ties, which rounding errors must not break."""
    random = np.random.default_rng(0)
    for _ in range(150):
        hundredths = random.integers(-5, 6, size=(random.integers(2, 8), random.integers(2, 8)))
        for exchange, axis in (("seeds", 1), ("units", 0)):
            result = permutation_test(hundredths / 100, exchange=exchange, seed=0)
            assert result["p"] == pytest.approx(exact_p(hundredths.sum(axis=axis)))
            assert result["least_p"] == 2 / 2 ** hundredths.shape[1 - axis]


def test_all_units_of_a_seed_change_sign_together():
    better_everywhere = np.full((3, 40), 0.1)
    assert permutation_test(better_everywhere, exchange="seeds", seed=0) == {"p": 0.25, "least_p": 0.25}
    result = permutation_test(better_everywhere, exchange="units", seed=0)
    # No pattern that is drawn reaches the observed one, which counts as one of them; on either side.
    assert result == {"p": pytest.approx(2 / (SIGN_PATTERNS + 1)), "least_p": 2 / (SIGN_PATTERNS + 1)}


def test_many_pairs_draw_patterns():
    numbers = np.random.default_rng(3).integers(-50, 60, size=18)
    signs = 1 - 2 * ((np.arange(2**18)[:, None] >> np.arange(18)) & 1)
    exact = float((np.abs(signs @ numbers) >= abs(numbers.sum())).mean())
    drawn = [permutation_test(numbers[None] / 1000, exchange="units", seed=seed)["p"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    # p is twice a share of SIGN_PATTERNS draws: five standard errors of that.
    assert drawn == pytest.approx([exact] * 3, abs=10 * np.sqrt(exact / 2 * (1 - exact / 2) / SIGN_PATTERNS))


def test_one_pair_cannot_be_tested():
    assert permutation_test(np.ones((1, 4)), exchange="seeds", seed=0) == {"p": None, "least_p": None}
    assert permutation_test(np.ones((4, 1)), exchange="units", seed=0) == {"p": None, "least_p": None}


# Calibration: how often each test rejects without a difference between the arms


def null_data(number: int, num_seeds: int, num_units: int, *, seeds: float, units: float) -> np.ndarray:
    """Return differences (number, S, U) of mean 0: deviations of seeds, of units, and 1 of each alone."""
    random = np.random.default_rng(5)
    return (
        random.normal(0, seeds or 1e-9, (number, num_seeds, 1))
        + random.normal(0, units or 1e-9, (number, 1, num_units))
        + random.normal(0, 1, (number, num_seeds, num_units))
    )


def by_seeds(data):
    return permutation_test(data, exchange="seeds", seed=0)["p"]


def by_units(data):
    return permutation_test(data, exchange="units", seed=0)["p"]


def by_wilcoxon(data):
    return wilcoxon_test(data.mean(axis=0))


def by_t(data):
    return relative_improvement_test(data.mean(axis=0), np.zeros(data.shape[1]))["p"]


@pytest.mark.parametrize(
    ("test", "num_seeds", "num_units", "seeds", "units"),
    [(by_seeds, 8, 5, 2, 0), (by_units, 3, 8, 0, 2), (by_wilcoxon, 3, 20, 0, 2), (by_t, 3, 20, 0, 2)],
)
def test_p_values_are_uniform_without_a_difference(test, num_seeds, num_units, seeds, units):
    data = null_data(300, num_seeds, num_units, seeds=seeds, units=units)
    p_values = np.array([test(one) for one in data])
    # All of these levels can be attained with eight seeds or units; Wilcoxon's with 20 units are within 0.004 of them.
    for level in (1 / 16, 1 / 4, 1 / 2):
        # Rejections are binomial; four standard errors are exceeded by chance in one of 16,000 cases.
        error = np.sqrt(level * (1 - level) / len(data))
        assert (p_values <= level).mean() == pytest.approx(level, abs=4 * error + 0.004)


def test_tests_over_units_take_the_models_as_given():
    """Where models differ by their seeds alone, a test over units sees a difference and a test over seeds does not."""
    data = null_data(100, 6, 8, seeds=2, units=0)
    assert np.mean([by_units(one) <= 0.05 for one in data]) > 0.5
    # 0.0312 can be attained with six seeds; of 100 cases, 12 is five standard errors above it.
    assert np.mean([by_seeds(one) <= 0.05 for one in data]) < 0.12


# Bootstrap


def outcomes_by_enumeration(units: np.ndarray) -> dict[float, float]:
    """Return the probability of each mean of a resample of units (U, S, N), over all draws."""
    num_units, num_seeds, num_examples = units.shape
    probabilities: dict[float, float] = {}
    example_draws = list(product(range(num_examples), repeat=num_examples))
    draws = product(
        product(range(num_seeds), repeat=num_seeds),
        product(range(num_units), repeat=num_units),
        product(example_draws, repeat=num_units),
    )
    all_draws = [
        np.mean([units[unit][np.ix_(seeds, drawn)].mean() for unit, drawn in zip(chosen, examples, strict=True)])
        for seeds, chosen, examples in draws
    ]
    for value in np.round(all_draws, 9):
        probabilities[value] = probabilities.get(value, 0) + 1 / len(all_draws)
    return probabilities


@pytest.mark.parametrize("shape", [(3, 2, 1), (2, 3, 1), (2, 2, 2)])
def test_resamples_have_the_distribution_of_all_draws(shape):
    units = np.random.default_rng(1).random(shape)
    resamples = 20_000
    generator = np.random.default_rng(2)
    means = resample_means(list(units[:, None]), resample_seeds(shape[1], resamples, generator), generator)
    values, counts = np.unique(np.round(means, 9), return_counts=True)
    expected = outcomes_by_enumeration(units)
    assert set(values) <= set(expected)
    observed = dict(zip(values, counts, strict=True))
    pairs = [(observed.get(value, 0), probability * resamples) for value, probability in expected.items()]
    assert stats.chisquare(*zip(*pairs, strict=True)).pvalue > 1e-4


def test_examples_are_drawn_in_parts_that_fit_memory(monkeypatch):
    """However many examples are drawn at once, resamples keep their seeds."""
    monkeypatch.setattr("unibert.study.statistics._DRAWS_AT_ONCE", 100)
    by_seed = np.broadcast_to(np.arange(3.0)[:, None], (1, 3, 20))
    weights = resample_seeds(3, 200, np.random.default_rng(0))
    means = resample_means([by_seed, by_seed], weights, np.random.default_rng(0))
    np.testing.assert_allclose(means[0], weights @ np.arange(3.0), rtol=1e-14)


def test_arms_share_draws():
    """A constant difference between arms stays constant in every resample, with examples too."""
    units = [np.stack([values, values + 0.25]) for values in np.random.default_rng(0).random((6, 4, 10))]
    generator = np.random.default_rng(1)
    means = resample_means(units, resample_seeds(4, 300, generator), generator)
    np.testing.assert_allclose(means[1] - means[0], 0.25, rtol=1e-12)
    assert means[0].std() > 0.01


def test_intervals_cover_the_true_difference():
    random = np.random.default_rng(7)
    num_seeds, num_units, datasets = 10, 20, 200
    covered = 0
    for _ in range(datasets):
        difference = 0.5 + random.normal(size=(num_seeds, 1)) + random.normal(size=num_units)
        stack = (difference + random.normal(size=(num_seeds, num_units))).T[:, None, :, None]
        means = resample_means(list(stack), resample_seeds(num_seeds, 300, random), random)
        low, high = percentile_interval(means[0])
        covered += low < 0.5 < high
    # The bootstrap's deviation of ten seeds is too small by √(1 − 1/10), of 20 units by √(1 − 1/20): with normal
    # quantiles where Student's are due, that makes 92 % of 95 %. Three standard errors of 200 datasets are 6 %.
    assert covered / datasets == pytest.approx(0.92, abs=0.06)


def test_with_one_seed_the_interval_is_that_of_scipy():
    differences = np.random.default_rng(0).normal(size=30)
    weights = resample_seeds(1, 20_000, np.random.default_rng(1))
    means = resample_means(list(differences[:, None, None, None]), weights, np.random.default_rng(2))
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
    )
    # A percentile of 20,000 resamples has a standard error of 2 % of their deviation; two are compared.
    tolerance = 5 * np.sqrt(2) * 0.02 * expected.standard_error
    assert percentile_interval(means[0]) == pytest.approx(tuple(expected.confidence_interval), abs=tolerance)


# Wilcoxon, Holm, effect sizes


def test_wilcoxon_is_that_of_scipy():
    differences = np.array([0.01, -0.02, 0.035, 0.04, 0.05, 0.061])
    assert wilcoxon_test(differences) == stats.wilcoxon(differences).pvalue == pytest.approx(2 * 3 / 2**6)


@pytest.mark.filterwarnings("error")
def test_equal_arms_do_not_differ():
    assert wilcoxon_test(np.zeros(5)) == 1.0
    assert wilcoxon_test(np.full(5, 0.1 + 0.2 - 0.3)) == 1.0  # 5.6e-17
    assert rank_biserial(np.full(5, 0.1 + 0.2 - 0.3)) == 0.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_with_bonferroni(p_values):
    """Holm rejects a hypothesis where Bonferroni rejects every set of hypotheses that contains it."""
    indices = range(len(p_values))
    subsets = list(chain.from_iterable(combinations(indices, size) for size in range(1, len(p_values) + 1)))
    expected = [
        min(1.0, max(len(subset) * min(p_values[one] for one in subset) for subset in subsets if index in subset))
        for index in indices
    ]
    assert holm(p_values) == pytest.approx(expected, rel=1e-12)


def test_holm_by_hand():
    assert holm([0.03, 0.01, 0.02, 0.9]) == pytest.approx([0.06, 0.04, 0.06, 0.9])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_effect_size_by_hand():
    # d = 2 / 1, and J(2) = Γ(1) / Γ(1/2) = 1/√π.
    assert hedges_d_z(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / np.sqrt(np.pi))


def test_effect_size_is_unbiased():
    samples = np.random.default_rng(0).normal(0.8, 1, size=(4000, 4))
    estimates = np.array([hedges_d_z(sample) for sample in samples])
    # Uncorrected, the mean would be 1.1: the correction for four seeds is 0.72.
    assert estimates.mean() == pytest.approx(0.8, abs=4 * estimates.std() / np.sqrt(len(samples)))


@pytest.mark.parametrize("differences", [[0.1], [0.1, 0.2], [0.1 + 0.2, 0.3, 0.3]])
def test_no_effect_size_without_deviation(differences):
    assert hedges_d_z(np.array(differences)) is None


@pytest.mark.parametrize(
    ("differences", "correlation"),
    [([1, 2, -3, 4], 0.4), ([1, 1, -1, 0], 1 / 3), ([1, 2], 1.0), ([-1, -2, 0], -1.0)],
)
def test_rank_biserial_by_hand(differences, correlation):
    assert rank_biserial(np.array(differences) / 100) == pytest.approx(correlation)


# Relative improvement


def test_test_of_relative_improvement_is_a_paired_t_test():
    changes, of_baseline = np.random.default_rng(0).normal(0.02, 0.05, size=(2, 25))
    expected = stats.ttest_rel(changes, of_baseline)
    result = relative_improvement_test(changes, of_baseline)
    assert (result["t"], result["p"]) == pytest.approx((expected.statistic, expected.pvalue))


@pytest.mark.filterwarnings("error")
def test_relative_improvements_without_deviation():
    assert relative_improvement_test(np.full(4, 0.1), np.full(4, 0.1)) == {"t": None, "p": 1.0}
    assert relative_improvement_test(np.full(4, 0.1)) == {"t": None, "p": None}
    assert relative_improvement_test(np.array([0.1])) == {"t": None, "p": None}


def constant(value: float) -> np.ndarray:
    return np.full((2, 2), value)


def test_average_relative_improvement_by_hand():
    scores = {"a": (0.5, 0.6, 0.55), "b": (0.8, 0.84, 0.8)}
    tasks = {
        name: TaskScores((1, 2), ("de", "tr"), dict(zip(("mlm", "adv", "kd"), map(constant, of_task), strict=True)))
        for name, of_task in scores.items()
    }
    result = compare(tasks, baseline="kd")["average_relative_improvement"]
    assert result["arm"] == pytest.approx({"change": 0.125, "low": 0.125, "high": 0.125})
    assert result["baseline"] == pytest.approx({"change": 0.05, "low": 0.05, "high": 0.05})
    # Changes of the four units are 0.2, 0.2, 0.05, 0.05 and 0.1, 0.1, 0, 0.
    assert result["p"] == pytest.approx(stats.ttest_rel([0.2, 0.2, 0.05, 0.05], [0.1, 0.1, 0, 0]).pvalue)
    assert (result["units"], result["left_out"]) == (4, 0)


def test_without_a_baseline_the_improvement_is_compared_with_none():
    without, with_reference = (
        compare({"a": task(1), "b": task(2)}, baseline=baseline)["average_relative_improvement"]
        for baseline in (None, "mlm")
    )
    assert without["baseline"] is None
    assert with_reference["baseline"] == {"change": 0, "low": 0, "high": 0}
    assert (without["p"], without["arm"]) == (with_reference["p"], with_reference["arm"])


def test_tasks_share_their_resampled_seeds():
    """A seed that is better in one task and worse in the other does not change the average."""
    by_seed = np.broadcast_to([[0.1], [0.2], [-0.1]], (3, 4))
    reference = np.full((3, 4), 0.5)
    tasks = {
        name: TaskScores((1, 2, 3), LANGUAGES[:4], {"mlm": reference, "adv": reference + sign * by_seed})
        for name, sign in (("a", 1), ("b", -1))
    }
    result = compare(tasks)
    average = result["average_relative_improvement"]["arm"]
    assert (average["low"], average["high"]) == pytest.approx((0, 0), abs=1e-12)
    assert result["tasks"]["a"]["relative"]["high"] - result["tasks"]["a"]["relative"]["low"] > 0.2


def test_units_where_the_reference_scores_zero_are_left_out_of_relative_changes():
    scores = task(1)
    scores.scores["mlm"][:, 2] = 0
    improvement = compare({"ner": scores}, baseline="kd")["average_relative_improvement"]
    assert (improvement["units"], improvement["left_out"]) == (7, 1)
    reference = scores.scores["mlm"].mean(axis=0)
    known = np.arange(8) != 2
    changes = [scores.scores[arm].mean(axis=0)[known] / reference[known] - 1 for arm in ("adv", "kd")]
    assert improvement["p"] == pytest.approx(stats.ttest_rel(*changes).pvalue)
    zero = compare({"ner": replace(scores, scores={**scores.scores, "mlm": np.zeros((5, 8))}), "xnli": task(2)})
    nothing = {"change": None, "low": None, "high": None}
    assert zero["tasks"]["ner"]["relative"] == zero["average_relative_improvement"]["arm"] == nothing
    assert None not in zero["tasks"]["ner"]["absolute"].values()
    json.dumps(zero, allow_nan=False)


# Comparison of two arms


@pytest.fixture(scope="module")
def study():
    return {"xnli": task(1), "xquad": task(2, examples=50), "sts": task(3, num_units=6, improvement=0)}


def test_a_comparison_holds_the_figures_of_each_test(study):
    result = compare(study, baseline="kd")
    assert (result["seeds"], result["note"], list(result["tasks"])) == (5, None, ["sts", "xnli", "xquad"])
    for name, entry in result["tasks"].items():
        arm, reference = study[name].scores["adv"], study[name].scores["mlm"]
        differences = arm - reference
        units = differences.mean(axis=0)
        assert entry["units"] == arm.shape[1]
        assert entry["arm"] == arm_summary(arm, study[name].units)
        assert entry["absolute"]["change"] == pytest.approx(differences.mean())
        assert entry["relative"]["change"] == pytest.approx(arm.mean() / reference.mean() - 1)
        for kind in ("absolute", "relative"):
            assert entry[kind]["low"] < entry[kind]["change"] < entry[kind]["high"]
        for exchange in ("seeds", "units"):
            expected = permutation_test(differences, exchange=exchange, seed=0)
            assert entry[f"permutation_{exchange}"].items() >= expected.items()
        assert entry["wilcoxon"]["p"] == pytest.approx(wilcoxon_test(units))
        assert entry["d_z"] == pytest.approx(hedges_d_z(differences.mean(axis=1)))
        assert entry["rank_biserial"] == pytest.approx(rank_biserial(units))
        assert entry["resampled"] == ["seeds", "units", *(["examples"] if name == "xquad" else [])]
    for test in ("permutation_seeds", "permutation_units", "wilcoxon"):
        entries = [entry[test] for entry in result["tasks"].values()]
        assert [entry["holm"] for entry in entries] == holm([entry["p"] for entry in entries])


def assert_plain(value):
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        for part in value.values():
            assert_plain(part)
    elif isinstance(value, list):
        for part in value:
            assert_plain(part)
    else:
        assert value is None or type(value) in (str, int, float)


def test_results_are_plain_values(study):
    assert_plain(compare(study, baseline="kd"))


def reordered(scores: TaskScores) -> TaskScores:
    """Return the same scores with other orders of arms, seeds, units, and of values in memory."""
    rows, columns = [3, 0, 4, 1, 2], list(reversed(range(len(scores.units))))
    return TaskScores(
        [scores.seeds[row] for row in rows],
        [scores.units[column] for column in columns],
        {arm: np.ascontiguousarray(scores.scores[arm][rows][:, columns]) for arm in reversed(scores.scores)},
        {arm: [values[column][rows] for column in columns] for arm, values in scores.examples.items()},
    )


def test_results_do_not_depend_on_the_order_of_anything(study):
    turned = {name: reordered(study[name]) for name in reversed(study)}
    columns_first = {
        name: replace(scores, scores={arm: np.asfortranarray(values) for arm, values in scores.scores.items()})
        for name, scores in study.items()
    }
    assert len({json.dumps(compare(tasks, baseline="kd")) for tasks in (study, turned, columns_first)}) == 1


def test_results_depend_on_the_seed_alone(study):
    assert compare(study) == compare(study)
    assert compare(study)["tasks"]["xnli"]["absolute"] != compare(study, seed=2)["tasks"]["xnli"]["absolute"]


def test_other_tasks_change_nothing_but_the_correction(study):
    alone, among_others = only(study["xnli"]), compare(study)["tasks"]["xnli"]
    for entry in (alone, among_others):
        for test in ("permutation_seeds", "permutation_units", "wilcoxon"):
            del entry[test]["holm"]
    assert alone == among_others


def test_exchanged_arms_give_the_same_p_values_and_opposite_changes(study):
    forward, backward = compare(study)["tasks"], compare(study, "mlm", "adv")["tasks"]
    for name in study:
        one, other = forward[name], backward[name]
        for test in ("permutation_seeds", "permutation_units", "wilcoxon"):
            assert one[test] == other[test]
        for effect in ("d_z", "rank_biserial"):
            assert one[effect] == pytest.approx(-other[effect])
        opposite = {"change": "change", "low": "high", "high": "low"}
        assert one["absolute"] == pytest.approx({key: -other["absolute"][of] for key, of in opposite.items()})


def test_a_constant_in_both_arms_changes_only_relative_figures(study):
    scores = study["xnli"]
    raised = replace(scores, scores={arm: values + 0.125 for arm, values in scores.scores.items()})
    before, after = only(scores), only(raised)
    for kind in ("permutation_seeds", "permutation_units", "wilcoxon"):
        assert before[kind] == after[kind]
    assert before["absolute"] == pytest.approx(after["absolute"], abs=1e-12)
    assert (before["d_z"], before["rank_biserial"]) == pytest.approx((after["d_z"], after["rank_biserial"]))
    assert after["relative"]["change"] < before["relative"]["change"]


def test_examples_widen_the_interval(study):
    scores = study["xquad"]
    with_examples, without = only(scores, resamples=3000), only(replace(scores, examples={}), resamples=3000)
    widths = [entry["absolute"]["high"] - entry["absolute"]["low"] for entry in (with_examples, without)]
    assert widths[0] > 1.1 * widths[1]
    assert without["resampled"] == ["seeds", "units"]


def test_a_single_run_stands_for_every_seed():
    scores = task(1)
    single = {**scores.scores, "mlm": scores.scores["mlm"][:1]}
    repeated = {**scores.scores, "mlm": scores.scores["mlm"][:1].repeat(5, axis=0)}
    result = compare({"xnli": replace(scores, scores=single)})
    entry, expected = result["tasks"]["xnli"], only(replace(scores, scores=repeated))
    for key in ("absolute", "relative", "permutation_units", "wilcoxon", "rank_biserial"):
        assert entry[key] == pytest.approx(expected[key])
    assert entry["permutation_seeds"] == {"p": None, "least_p": None, "holm": None}
    assert entry["d_z"] is entry["reference"]["deviation"] is None
    assert entry["arm"]["deviation"] is not None
    assert result["note"].startswith("A single run of mlm stands for every seed")


def test_single_runs_are_compared_over_units():
    scores = task(1)
    single = replace(scores, seeds=(13,), scores={arm: values[:1] for arm, values in scores.scores.items()})
    untrained = replace(scores, scores={**single.scores, "kd": scores.scores["kd"]})
    for one in (single, untrained):
        result = compare({"xnli": one})
        entry = result["tasks"]["xnli"]
        assert result["seeds"] == 1
        assert result["note"].startswith("Each arm has a single run")
        assert entry["permutation_seeds"]["p"] is None
        assert entry["permutation_units"]["p"] is not None
        assert entry["resampled"] == ["units"]
        assert entry["absolute"]["low"] < entry["absolute"]["high"]


def test_one_run_in_one_unit_has_no_interval():
    scores = {arm: values[:1, :1] for arm, values in task(1).scores.items()}
    entry = only(TaskScores((13,), ("de",), scores))
    assert entry["resampled"] == []
    assert entry["absolute"] == {"change": pytest.approx(scores["adv"].item() - scores["mlm"].item())} | {
        "low": None,
        "high": None,
    }


def test_units_that_no_arm_has_are_left_out():
    scores = task(1)
    missing = {arm: np.insert(values, 2, np.nan, axis=1) for arm, values in scores.scores.items()}
    units = [*scores.units[:2], "xx", *scores.units[2:]]
    assert only(TaskScores(SEEDS, units, missing)) == only(scores) | {"missing_units": ["xx"]}


def without_a_score(scores: TaskScores) -> TaskScores:
    incomplete = {arm: values.copy() for arm, values in scores.scores.items()}
    incomplete["kd"][1, 2] = np.nan
    return replace(scores, scores=incomplete)


GOOD = task(1, examples=20)
REFUSED = {
    "no task": ({}, "no task"),
    "no such arm": (
        {"a": replace(GOOD, scores={"mlm": GOOD.scores["mlm"]})},
        "no scores of arm adv; it has those of mlm",
    ),
    "missing seeds": (
        {"a": replace(GOOD, scores={**GOOD.scores, "adv": GOOD.scores["adv"][:3]})},
        "arm adv: scores of",
    ),
    "other seeds": (
        {"a": GOOD, "b": replace(GOOD, seeds=(1, 2, 3, 4, 5))},
        "Tasks a and b have runs of different seeds",
    ),
    "one run in one task": (
        {"a": GOOD, "b": replace(GOOD, scores={**GOOD.scores, "adv": GOOD.scores["adv"][:1]}, examples={})},
        "Tasks a and b have runs of different seeds",
    ),
    "a unit twice": ({"a": replace(GOOD, units=["de"] * 8)}, "Task a names a seed or a unit twice"),
    "a score missing": ({"a": without_a_score(GOOD)}, "Task a: only some runs have a score of el"),
    "no score": (
        {"a": replace(GOOD, scores=dict.fromkeys(GOOD.scores, np.full((5, 8), np.nan)))},
        "no unit with a score",
    ),
    "other examples": (
        {"a": replace(GOOD, examples={**GOOD.examples, "adv": [one[:, :9] for one in GOOD.examples["adv"]]})},
        "unit ar: the arms have different numbers of examples",
    ),
    "no mean of examples": (
        {"a": replace(GOOD, scores={**GOOD.scores, "mlm": GOOD.scores["mlm"] + 0.001})},
        "arm mlm: the scores are not the means",
    ),
}


@pytest.mark.parametrize(("tasks", "message"), REFUSED.values(), ids=REFUSED)
def test_scores_that_do_not_fit_are_refused(tasks, message):
    with pytest.raises(UserError, match=message):
        compare(tasks)
