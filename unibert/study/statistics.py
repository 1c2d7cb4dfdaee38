"""Statistics of a study: an arm against a reference arm, over seeds, units and tasks.

A unit is a test set in one language, such as "xquad de". The arms are paired: one seed gives all of them the same order
of data. An arm with a single run, such as a teacher or a random guess, is compared by letting its scores stand for
every seed; no statistic over seeds is then given.

The differences of a task have two sources of variation, and each test accounts for one. Units of one seed share a
model, so that their differences are not independent of each other; nor are the differences of one unit in several
seeds. Only the bootstrap resamples both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import special, stats

from unibert.errors import UserError

CONFIDENCE = 0.95
"""Level of all confidence intervals."""
SIGN_PATTERNS = 2**16
"""Number of sign patterns up to which permutation tests are exact, and the number that others draw."""
_DECIMALS = 12
"""Decimals that differences of scores keep, so that rounding errors make no ties unequal and no zeros nonzero."""
_DRAWS_AT_ONCE = 2**20
"""Number of examples that are drawn at once, which bounds the memory."""


@dataclass(frozen=True)
class TaskScores:
    """The scores of all arms in one task; higher is better.

    Attributes:
        seeds: seeds of the runs, (S,).
        units: names of the units, (U,).
        scores: by arm, (S, U) floats; (1, U) for an arm with a single run. NaN for a unit that no arm has.
        examples: by arm, for each unit the values of its examples, (S or 1, N) floats whose mean is the score, in the
            same order of examples in all arms. It has no entries where a score is no mean over examples, as F1 over a
            corpus or a correlation.
    """

    seeds: Sequence[int]
    units: Sequence[str]
    scores: Mapping[str, np.ndarray]
    examples: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class _ComparedScores:
    """The arms of a comparison in one task, without missing units; seeds and units are sorted.

    ``scores``: by arm, (S or 1, U). ``stacks``: for each unit (arms, S, N), where N is 1 if examples are not resampled.
    ``resampled``: what has more than one of its kind to draw from.
    """

    units: list[str]
    missing: list[str]
    scores: dict[str, np.ndarray]
    stacks: list[np.ndarray]
    resampled: list[str]


def compare_arms(
    tasks: Mapping[str, TaskScores],
    *,
    arm: str,
    reference: str,
    baseline: str | None = None,
    seed: int,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Compare an arm with a reference arm in every task.

    The result depends on the values alone, not on the order of tasks, arms, seeds or units.

    Args:
        tasks: scores by name of the task.
        arm: name of the arm.
        reference: name of the arm that it is compared with.
        baseline: name of the arm whose improvement over the reference the arm's improvement is compared with; None
            compares it with none, a change of 0.
        seed: seed of the random numbers, at least 0.
        resamples: number of bootstrap resamples.

    Returns:
        A dict for JSON. Numbers are float, counts int; None where a statistic does not exist::

            arm, reference, baseline, seed, resamples, confidence    as given
            seeds    number of seeds over which the arms are paired
            note     what is not counted, since an arm has a single run; else None
            tasks    {task: {
                units, missing_units    number of units; names of those without a score
                resampled               what the bootstrap resamples: "seeds", "units", "examples"
                arm, reference          as in `arm_summary`
                absolute, relative      {change, low, high}: change of the mean, difference and `relative_change`, and
                                        the ends of its confidence interval
                permutation_seeds, permutation_units    {p, least_p, holm}: `permutation_test`
                wilcoxon                {p, holm}: `wilcoxon_test`
                d_z, rank_biserial      `hedges_d_z` over seeds, `rank_biserial` over units }}
            average_relative_improvement    {arm, baseline: {change, low, high}, t, p, units, left_out}

        ``holm`` is p after Holm's correction for the number of tasks. ``average_relative_improvement`` is our reading
        of the figure in the abstract of arXiv 2503.12608, "average relative improvement", which the abstract does not
        define: the change is the mean over tasks of `relative_change`, and t and p are of `relative_improvement_test`
        over the ``units`` of all tasks, without the ``left_out`` ones, in which the reference scores 0.

        All tasks share the resampled seeds, since a seed's model is the same in all of them; units are resampled in
        each task by itself. The interval of a relative change is None if the reference scores 0 in a resample.

    Raises:
        UserError: for no task, a missing arm, tasks or arms with different seeds, units that not all arms have, or
            examples that do not fit the scores.
    """
    if not tasks:
        raise UserError("The study has no task to compare arms in; name at least one")
    names = [arm, reference, *([] if baseline is None else [baseline])]
    compared = {name: _select(name, tasks[name], names) for name in sorted(tasks)}
    _check_seeds(tasks, compared)
    runs = {name: len(scores) for name, scores in next(iter(compared.values())).scores.items()}
    num_seeds = max(runs.values())
    paired_over_seeds = runs[arm] > 1 and runs[reference] > 1
    seed_weights = resample_seeds(num_seeds, resamples, np.random.default_rng(seed))
    entries, relative_means = {}, []
    for name, task in compared.items():
        # A task's random numbers depend on its name, so that other tasks do not change its figures.
        entropy = [seed, *name.encode()]
        if task.resampled:
            means = resample_means(task.stacks, seed_weights, np.random.default_rng(entropy))
        else:
            means = np.full((len(names), resamples), np.nan)
        relative_means.append(_relative_or_nan(means, means[1]))
        entries[name] = _task_entry(task, arm, reference, paired_over_seeds, entropy, means)
    for test in ("permutation_seeds", "permutation_units", "wilcoxon"):
        results = [entry[test] for entry in entries.values() if entry[test]["p"] is not None]
        for result, adjusted in zip(results, holm([result["p"] for result in results]), strict=True):
            result["holm"] = adjusted
    return {
        "arm": arm,
        "reference": reference,
        "baseline": baseline,
        "seed": seed,
        "resamples": resamples,
        "confidence": CONFIDENCE,
        "seeds": num_seeds,
        "note": _note(runs),
        "tasks": entries,
        "average_relative_improvement": _average_improvement(
            compared, arm, reference, baseline, np.mean(relative_means, axis=0)
        ),
    }


def arm_summary(scores: np.ndarray, units: Sequence[str]) -> dict[str, Any]:
    """Return means of scores (S, U).

    Returns:
        ``mean``: over units, then seeds. ``deviation``: standard deviation of the seeds' means with S − 1 in the
        denominator; None with one seed. ``seed_means``: mean of each seed over the units. ``unit_means``: mean of each
        unit over the seeds, by name.
    """
    seed_means = scores.mean(axis=1)
    return {
        "mean": float(seed_means.mean()),
        "deviation": float(seed_means.std(ddof=1)) if len(seed_means) > 1 else None,
        "seed_means": seed_means.tolist(),
        "unit_means": dict(zip(units, scores.mean(axis=0).tolist(), strict=True)),
    }


def relative_change(value: float, reference: float) -> float | None:
    """Return (value − reference) / reference; None unless the reference is positive."""
    return (value - reference) / reference if reference > 0 else None


def permutation_test(
    differences: np.ndarray, *, exchange: Literal["seeds", "units"], seed: int | Sequence[int]
) -> dict[str, float | None]:
    """Test the mean of paired differences (S, U) of two arms by permutation, two-sided.

    If the arms do not differ, exchanging them in a pair changes the sign of its difference and nothing else. The
    p-value is the share of sign patterns whose mean is at least as far from 0 as the observed one.

    ``exchange="seeds"`` exchanges the arms in all units of a seed together. It asks whether the arms differ for other
    seeds than these, in these units, however the units of a model depend on each other. With S seeds, p is at least
    2 / 2^S: 0.25 with three, 0.0625 with five.

    ``exchange="units"`` exchanges them in all seeds of a unit together. It asks whether these trained models differ in
    other units than these, and takes them as given: a difference between two arms that is due to their few seeds counts
    as one of the arms. It assumes that units are independent; languages of one family, or one language in two
    collections, are not, and p is then too small.

    To exchange each seed of each unit by itself would be valid in neither case, and is not offered.

    With up to `SIGN_PATTERNS` patterns, p is exact. Otherwise that many are drawn with ``seed``, and the observed one
    is counted as one of them (Phipson and Smyth 2010, "Permutation p-values should never be zero").

    Returns:
        ``p``, and ``least_p``, the least that it can be with so many seeds or units; None with fewer than two.
    """
    values = np.round(differences, _DECIMALS).mean(axis=1 if exchange == "seeds" else 0)
    if len(values) < 2:
        return {"p": None, "least_p": None}
    result = stats.permutation_test(
        (values,),
        _rounded_mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=SIGN_PATTERNS,
        rng=np.random.default_rng(seed),
    )
    num_patterns = 2.0 ** len(values)
    least = 2 / (num_patterns if num_patterns <= SIGN_PATTERNS else SIGN_PATTERNS + 1)
    return {"p": float(result.pvalue), "least_p": least}


def _rounded_mean(values: np.ndarray, axis: int) -> np.ndarray:
    return np.round(values.mean(axis=axis), _DECIMALS)


def wilcoxon_test(unit_differences: np.ndarray) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test of paired differences (U,).

    It asks what ``exchange="units"`` of `permutation_test` asks, with ranks in place of values, so that a few units
    with large differences do not decide. Zeros are left out; p is 1 if all are zero.
    """
    values = np.round(unit_differences, _DECIMALS)
    return float(stats.wilcoxon(values).pvalue) if values.any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, by Holm's step-down method (1979), in the order given.

    Rejecting where the adjusted value is at most α keeps the probability of any false rejection at α or below.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def hedges_d_z(seed_differences: np.ndarray) -> float | None:
    """Return Cohen's d_z of paired differences (S,), mean over standard deviation, without its bias in small samples.

    The correction is J = Γ(m/2) / (√(m/2) Γ((m−1)/2)) with m = S − 1 (Hedges 1981). It is 0 with two seeds, which
    therefore give None, as does one seed, or differences that are all equal.
    """
    values = np.round(seed_differences, _DECIMALS)
    freedom = len(values) - 1
    if freedom < 2 or np.ptp(values) == 0:
        return None
    correction = special.poch((freedom - 1) / 2, 0.5) / np.sqrt(freedom / 2)
    return float(correction * values.mean() / values.std(ddof=1))


def rank_biserial(unit_differences: np.ndarray) -> float:
    """Return the matched-pairs rank-biserial correlation of paired differences (U,), −1 to 1.

    It is the share of the ranks' sum that belongs to positive differences less that of negative ones (Kerby 2014).
    Zeros are left out as in `wilcoxon_test`; 0 if all are zero.
    """
    values = np.round(unit_differences, _DECIMALS)
    values = values[values != 0]
    ranks = stats.rankdata(np.abs(values))
    return float((np.sign(values) * ranks).sum() / ranks.sum()) if len(values) else 0.0


def relative_improvement_test(
    changes: np.ndarray, baseline_changes: np.ndarray | None = None
) -> dict[str, float | None]:
    """Test whether the relative changes of an arm differ from those of a baseline: two-sided paired t-test.

    This is our reading of "statistical analysis confirms the significance of these gains (p-value = 0.0181)" in the
    abstract of arXiv 2503.12608, which does not name the test; the pairs are the units of all tasks, and both changes
    are relative to the same reference. A task with more units therefore counts more here than in a mean over tasks. The
    test treats languages as independent and the trained models as given, so its p-value is smaller than the evidence
    warrants; `permutation_test` and the bootstrap say more.

    Args:
        changes: relative changes of the arm in the units of all tasks, (N,).
        baseline_changes: those of the baseline, (N,); None stands for no change.

    Returns:
        ``t`` and ``p``; p is 1 if all pairs are equal. None with fewer than two pairs, or if all differ by the same.
    """
    differences = np.round(changes - (0.0 if baseline_changes is None else baseline_changes), _DECIMALS)
    if len(differences) < 2:
        return {"t": None, "p": None}
    if np.ptp(differences) == 0:
        return {"t": None, "p": None if differences[0] else 1.0}
    result = stats.ttest_1samp(differences, 0.0)
    return {"t": float(result.statistic), "p": float(result.pvalue)}


def resample_seeds(num_seeds: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Draw seeds with replacement; return the weight of each in each resample, (resamples, S) float64, summing to 1."""
    return generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples) / num_seeds


def resample_means(units: Sequence[np.ndarray], seed_weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw units, and examples in each, with replacement, crossed with resampled seeds.

    A resample has the same seeds, units and examples in all arms, and all its units have the same seeds: the pigeonhole
    bootstrap of crossed factors (Owen 2007). It overstates the variance that a score has beside those of its seed and
    its unit, and understates that of S seeds by the factor (S − 1) / S, as bootstraps do: with three seeds, intervals
    are too narrow where seeds vary more than units.

    Args:
        units: for each unit the values of its examples, (arms, S, N), or its score with N = 1.
        seed_weights: of `resample_seeds`.
        generator: source of the random numbers.

    Returns:
        The mean over seeds and units in each resample, (arms, resamples) float64.
    """
    resamples, num_seeds = seed_weights.shape
    times_drawn = generator.multinomial(len(units), np.full(len(units), 1 / len(units)), size=resamples)
    sums = np.zeros((len(units[0]), resamples))
    for values, times in zip(units, times_drawn.T, strict=True):
        num_examples = values.shape[2]
        resample_of = np.repeat(np.arange(resamples), times)
        for rows in np.array_split(resample_of, -(-len(resample_of) * num_examples // _DRAWS_AT_ONCE) or 1):
            drawn = generator.integers(num_examples, size=(len(rows), num_examples))
            for total, by_seed in zip(sums, values, strict=True):
                # Sums by seed and not a matrix product, whose last bits depend on the library and the addresses.
                weighted = sum(seed_weights[rows, seed, None] * by_seed[seed] for seed in range(num_seeds))
                means = np.take_along_axis(np.asarray(weighted), drawn, axis=1).mean(axis=1)
                total += np.bincount(rows, means, minlength=resamples)
    return sums / len(units)


def percentile_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Return the interval between the percentiles of resampled values (resamples,); None if one of them is NaN."""
    if np.isnan(values).any():
        return None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _task_entry(
    task: _ComparedScores,
    arm: str,
    reference: str,
    paired_over_seeds: bool,
    entropy: Sequence[int],
    means: np.ndarray,
) -> dict[str, Any]:
    """Return the entry of a task of `compare_arms`.

    ``means``: resampled means, (arms, resamples), of which the arm and the reference are the first.
    """
    differences = task.scores[arm] - task.scores[reference]
    unit_differences = task.scores[arm].mean(axis=0) - task.scores[reference].mean(axis=0)
    summaries = {name: arm_summary(task.scores[name], task.units) for name in (arm, reference)}
    mean, reference_mean = summaries[arm]["mean"], summaries[reference]["mean"]
    return {
        "units": len(task.units),
        "missing_units": task.missing,
        "resampled": task.resampled,
        "arm": summaries[arm],
        "reference": summaries[reference],
        "absolute": _change(mean - reference_mean, means[0] - means[1]),
        "relative": _change(relative_change(mean, reference_mean), _relative_or_nan(means[0], means[1])),
        "permutation_seeds": (
            permutation_test(differences, exchange="seeds", seed=entropy)
            if paired_over_seeds
            else {"p": None, "least_p": None}
        )
        | {"holm": None},
        "permutation_units": permutation_test(differences, exchange="units", seed=entropy) | {"holm": None},
        "wilcoxon": {"p": wilcoxon_test(unit_differences), "holm": None},
        "d_z": hedges_d_z(differences.mean(axis=1)) if paired_over_seeds else None,
        "rank_biserial": rank_biserial(unit_differences),
    }


def _average_improvement(
    compared: Mapping[str, _ComparedScores], arm: str, reference: str, baseline: str | None, resampled: np.ndarray
) -> dict[str, Any]:
    """Return the entry of `compare_arms`; ``resampled``: mean relative changes over tasks, (arms, resamples)."""

    def average(name: str) -> float | None:
        changes = [
            relative_change(*(float(task.scores[one].mean(axis=1).mean()) for one in (name, reference)))
            for task in compared.values()
        ]
        known = [change for change in changes if change is not None]
        return float(np.mean(known)) if len(known) == len(changes) else None

    def unit_changes(name: str) -> np.ndarray:
        changes = [
            _relative_or_nan(task.scores[name].mean(axis=0), task.scores[reference].mean(axis=0))
            for task in compared.values()
        ]
        return np.concatenate(changes)

    changes = unit_changes(arm)
    known = ~np.isnan(changes)
    baseline_changes = None if baseline is None else unit_changes(baseline)[known]
    return {
        "arm": _change(average(arm), resampled[0]),
        "baseline": None if baseline is None else _change(average(baseline), resampled[2]),
        **relative_improvement_test(changes[known], baseline_changes),
        "units": int(known.sum()),
        "left_out": int((~known).sum()),
    }


def _change(value: float | None, resampled: np.ndarray) -> dict[str, float | None]:
    low, high = (None, None) if value is None else percentile_interval(resampled) or (None, None)
    return {"change": value, "low": low, "high": high}


def _relative_or_nan(values: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return `relative_change` of arrays that broadcast, with NaN where it is None."""
    known = references > 0
    return (values - references) / np.where(known, references, np.nan)


def _note(runs: Mapping[str, int]) -> str | None:
    single = [name for name, number in runs.items() if number == 1]
    if not single:
        return None
    if len(single) == len(runs):
        return "Each arm has a single run: nothing here accounts for the variation over seeds or tests over them."
    return (
        f"A single run of {' and of '.join(single)} stands for every seed: nothing here accounts for its variation "
        "over seeds or tests over them."
    )


def _select(task_name: str, task: TaskScores, arms: Sequence[str]) -> _ComparedScores:
    """Return the scores of some arms in a task, after a check of all."""
    for arm in arms:
        if arm not in task.scores:
            raise UserError(f"Task {task_name} has no scores of arm {arm}; it has those of {', '.join(task.scores)}")
    columns = _scored_units(task_name, task)
    rows = sorted(range(len(task.seeds)), key=task.seeds.__getitem__)

    def by_seed(runs: np.ndarray) -> np.ndarray:
        return np.asarray(runs, dtype=np.float64)[rows if len(runs) == len(rows) else slice(None)]

    # The order in which numpy adds, and so the last bits of sums, depend on the layout in memory.
    scores = {arm: np.ascontiguousarray(by_seed(task.scores[arm])[:, columns]) for arm in dict.fromkeys(arms)}
    num_seeds = max(len(runs) for runs in scores.values())
    has_examples = all(arm in task.examples for arm in arms)
    stacks = []
    for index, column in enumerate(columns):
        values = {arm: runs[:, index, None] for arm, runs in scores.items()}
        if has_examples:
            means, values = values, {arm: by_seed(task.examples[arm][column]) for arm in scores}
            _check_examples(f"Task {task_name}, unit {task.units[column]}", values, means)
        stacks.append(np.stack([np.broadcast_to(values[arm], (num_seeds, values[arm].shape[1])) for arm in arms]))
    units = [task.units[column] for column in columns]
    sources = {"seeds": num_seeds > 1, "units": len(units) > 1, "examples": has_examples}
    return _ComparedScores(
        units=units,
        missing=sorted(set(task.units) - set(units)),
        scores=scores,
        stacks=stacks,
        resampled=[source for source, varies in sources.items() if varies],
    )


def _scored_units(task_name: str, task: TaskScores) -> list[int]:
    """Check the scores of a task; return the columns of the units that have scores, by name."""
    num_seeds, num_units = len(task.seeds), len(task.units)
    if len(set(task.seeds)) < num_seeds or len(set(task.units)) < num_units:
        raise UserError(f"Task {task_name} names a seed or a unit twice; name each once")
    for arm, scores in task.scores.items():
        if scores.shape not in {(num_seeds, num_units), (1, num_units)}:
            raise UserError(
                f"Task {task_name}, arm {arm}: scores of shape {scores.shape} for {num_seeds} seeds and {num_units} "
                "units; give one row for each seed, or one row for a single run"
            )
    known = np.concatenate([~np.isnan(scores) for scores in task.scores.values()])
    incomplete = [task.units[column] for column in np.flatnonzero(known.any(axis=0) & ~known.all(axis=0)).tolist()]
    if incomplete:
        raise UserError(
            f"Task {task_name}: only some runs have a score of {', '.join(incomplete)}; score the others, or leave the "
            "unit out of the study"
        )
    if not known.any():
        raise UserError(f"Task {task_name} has no unit with a score; leave the task out of the study")
    return sorted(np.flatnonzero(known.all(axis=0)).tolist(), key=task.units.__getitem__)


def _check_examples(where: str, examples: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]) -> None:
    """Refuse examples, (S, N), that differ in number between arms or whose means are not the scores, (S, 1)."""
    if len({values.shape[1] for values in examples.values()}) > 1:
        raise UserError(f"{where}: the arms have different numbers of examples; score all of them on the same file")
    for arm, values in examples.items():
        # Scores may be rounded to four decimals.
        if len(values) != len(scores[arm]) or not np.allclose(values.mean(axis=1), scores[arm][:, 0], atol=1e-4):
            raise UserError(
                f"{where}, arm {arm}: the scores are not the means of the examples; give no examples for such a score"
            )


def _check_seeds(tasks: Mapping[str, TaskScores], compared: Mapping[str, _ComparedScores]) -> None:
    """Refuse tasks with different seeds."""
    first, *others = compared
    for name in others:
        same_runs = all(len(compared[name].scores[arm]) == len(runs) for arm, runs in compared[first].scores.items())
        if sorted(tasks[name].seeds) != sorted(tasks[first].seeds) or not same_runs:
            raise UserError(
                f"Tasks {first} and {name} have runs of different seeds; score the missing ones, or leave the seeds out"
            )
