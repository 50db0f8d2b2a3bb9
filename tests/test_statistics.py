"""Aggregates equal their definitions, and intervals contain the true value as often as they claim."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from rlcls import statistics

SCORES = hnp.arrays(np.float64, st.tuples(st.integers(3, 7), st.integers(1, 4)), elements=st.floats(-5, 5))


@given(SCORES)
def test_aggregates_equal_their_definitions(scores):
    values = sorted(scores.reshape(-1))
    cut = len(values) // 4
    kept = values[cut : len(values) - cut]
    np.testing.assert_allclose(statistics.iqm(scores), sum(kept) / len(kept), atol=1e-12)
    np.testing.assert_allclose(statistics.iqm(scores), stats.trim_mean(scores, 0.25, axis=None), atol=1e-12)
    np.testing.assert_allclose(statistics.mean(scores), sum(values) / len(values), atol=1e-12)
    tasks = [sum(column) / len(column) for column in scores.T.tolist()]
    np.testing.assert_allclose(statistics.median(scores), np.median(tasks), atol=1e-12)
    gap = sum(0.5 - min(value, 0.5) for value in values) / len(values)
    np.testing.assert_allclose(statistics.optimality_gap(scores, 0.5), gap, atol=1e-12)
    thresholds = np.array([-1.0, 0.0, 2.5])
    shares = [sum(value > threshold for value in values) / len(values) for threshold in thresholds]
    np.testing.assert_allclose(statistics.performance_profile(scores, thresholds), shares, atol=1e-12)


@given(SCORES, st.integers(2, 5), st.integers(0, 2**31))
def test_the_probability_of_improvement_counts_pairs_of_runs(scores, count, seed):
    others = np.random.default_rng(seed).choice(scores.reshape(-1), (count, scores.shape[1]))  # with ties
    shares = []
    for ours, theirs in zip(scores.T, others.T, strict=True):
        pairs = list(itertools.product(ours, theirs))
        shares.append(
            sum(a > b for a, b in pairs) / len(pairs) + sum(a == b for a, b in pairs) / len(pairs) / 2
        )
        u = stats.mannwhitneyu(ours, theirs).statistic
        np.testing.assert_allclose(shares[-1], u / len(pairs), atol=1e-12)
    found = statistics.probability_of_improvement(scores, others)
    np.testing.assert_allclose(found, np.mean(shares), atol=1e-12)
    np.testing.assert_allclose(found + statistics.probability_of_improvement(others, scores), 1, atol=1e-12)


@given(SCORES, st.floats(0.1, 10), st.floats(-5, 5))
def test_an_interval_contains_its_statistic_and_scales_with_the_scores(scores, scale, shift):
    low, high = statistics.interval(scores, resamples=50)
    point = statistics.iqm(scores)
    assert low - 1e-9 <= high
    moved = statistics.interval(scale * scores + shift, resamples=50)
    np.testing.assert_allclose(moved, (scale * low + shift, scale * high + shift), atol=1e-9)
    constant = statistics.interval(np.full_like(scores, point))
    np.testing.assert_allclose(constant, (point, point), atol=1e-12)


COLLAPSED = "a fifth of the runs collapsed"


@pytest.mark.parametrize(
    ("seeds", "tasks", "kind", "least"),
    [
        (3, 1, "normal", 0.90),
        (5, 1, "normal", 0.90),
        (10, 1, "normal", 0.93),
        (5, 5, "normal", 0.90),
        (10, 5, "normal", 0.93),
        (10, 1, COLLAPSED, 0.90),
    ],
)
def test_an_interval_covers_the_true_value_as_often_as_it_claims(seeds, tasks, kind, least):
    random, experiments = np.random.default_rng(seeds * 100 + tasks), 600

    def draw(size):
        scores = random.normal(1.0, 0.2, size)
        return np.where(random.random(size) < 0.2, 0.0, scores) if kind == COLLAPSED else scores

    # With few runs, the true value is the mean of the IQM over experiments.
    truth = statistics.iqm(draw((20_000, seeds, tasks))).mean()
    covered = 0
    for experiment in range(experiments):
        low, high = statistics.interval(draw((seeds, tasks)), seed=experiment, resamples=400)
        covered += low <= truth <= high
    assert covered / experiments >= least


def test_a_curve_is_an_interval_at_each_time():
    scores = np.random.default_rng(0).normal(size=(4, 5, 2))
    curve = statistics.curve(scores, statistics.mean, seed=3)
    for i, moment in enumerate(scores):
        expected = statistics.interval(moment, statistics.mean, seed=3)
        np.testing.assert_allclose((curve.low[i], curve.high[i]), expected)
        np.testing.assert_allclose(curve.points[i], moment.mean())


def test_the_interval_of_a_difference_covers_the_true_value():
    random, covered = np.random.default_rng(2), 0
    for experiment in range(400):
        ours, theirs = random.normal(1.0, 0.3, (5, 1)), random.normal(0.8, 0.1, (8, 1))
        point, (low, high) = statistics.difference(
            ours, theirs, statistics.mean, seed=experiment, resamples=300
        )
        np.testing.assert_allclose(point, ours.mean() - theirs.mean())
        covered += low <= 0.2 <= high
    assert covered / 400 >= 0.93


def test_scores_are_normalised_task_by_task():
    scores = np.array([[10.0, -3.0], [20.0, 1.0]])
    np.testing.assert_allclose(statistics.normalised(scores, [10, -3], [20, 1]), [[0, 0], [1, 1]])
    with pytest.raises(ValueError, match="scores of 2 tasks need as many pairs of different low and high"):
        statistics.normalised(scores, [1, 2], [1, 3])


@pytest.mark.untyped
def test_different_numbers_of_tasks_are_refused():
    with pytest.raises(ValueError, match="1 tasks cannot be compared with 2"):
        statistics.difference(np.ones((3, 1)), np.ones((3, 2)))


def test_too_few_seeds_and_missing_runs_are_refused():
    with pytest.raises(ValueError, match="an interval needs at least 3 seeds, not 2"):
        statistics.interval(np.ones((2, 4)))
    with pytest.raises(ValueError, match="scores must be finite; leave missing runs out"):
        statistics.interval(np.array([[1.0], [np.nan], [2.0]]))
