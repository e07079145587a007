"""Errors and intervals, against what lmms_eval and scipy give."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from eval import statistics
from vila_jax.errors import ConfigError


def test_the_recorded_cases(golden):
    cases = json.loads((golden / "eval" / "statistics.json").read_text())["cases"]
    for case in cases:
        expected = dict(case["expected"])
        if "pooled_sample_stderr" in expected:
            found = statistics.pooled_standard_error(case["stderrs"], case["sizes"])
            assert found == pytest.approx(expected["pooled_sample_stderr"], abs=1e-9)
            continue
        scores, clusters = case["scores"], case["cluster_ids"]
        assert statistics.mean(scores) == pytest.approx(expected["mean"], abs=1e-9)
        assert statistics.standard_error(scores) == pytest.approx(expected["mean_stderr"], abs=1e-9)
        clustered = statistics.clustered_standard_error(scores, clusters)
        assert clustered == pytest.approx(expected["clustered_stderr"], abs=1e-9)
        found = statistics.paired_difference(scores, case["baseline_scores"])
        test = expected["paired_ttest"]
        names = {
            "mean_diff": "mean",
            "se_diff": "standard_error",
            "ci_lower": "low",
            "ci_upper": "high",
            "t_stat": "t",
            "p_value": "p_value",
            "n": "n",
        }
        for theirs, ours in names.items():
            assert getattr(found, ours) == pytest.approx(test[theirs], abs=1e-6), (case["id"], theirs)


def test_a_difference_over_clusters_of_one_is_near_that_of_single_samples():
    rng = np.random.default_rng(3)
    a, b = rng.random(40).tolist(), rng.random(40).tolist()
    alone = statistics.paired_difference(a, b)
    clustered = statistics.paired_difference(a, b, list(range(40)))
    assert clustered.standard_error == pytest.approx(alone.standard_error)
    doubled = statistics.paired_difference(a + a, b + b, [*range(40), *range(40)])
    assert doubled.standard_error == pytest.approx(clustered.standard_error, rel=0.02)  # asked twice is not known twice
    assert doubled.n == 80


def test_equal_runs_do_not_differ():
    found = statistics.paired_difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_wilson():
    for right, asked in ((0, 5), (3, 5), (190, 218)):
        interval = stats.binomtest(right, asked).proportion_ci(method="wilson")
        assert statistics.wilson(right / asked, asked) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_the_bootstrap_of_a_mean_is_that_of_scipy():
    scores = np.random.default_rng(5).random(60)
    low, high = statistics.bootstrap(scores.tolist(), list(range(60)), statistics.mean, draws=4000)
    found = stats.bootstrap((scores,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx((found.low, found.high), abs=0.01)
    again = statistics.bootstrap(scores.tolist(), list(range(60)), statistics.mean, draws=4000)
    assert (low, high) == again  # drawn by seed


def test_the_bootstrap_draws_whole_clusters():
    """Two clusters of equal scores: a draw has 0, a half or 1, whatever their size."""
    drawn = []
    statistics.bootstrap([0.0] * 6 + [1.0] * 6, ["a"] * 6 + ["b"] * 6, lambda s: drawn.append(s) or 0.0, draws=50)
    assert {statistics.mean(scores) for scores in drawn} == {0.0, 0.5, 1.0}


def test_too_few_and_unequal_numbers():
    assert math.isnan(statistics.mean([])) and math.isnan(statistics.standard_error([1.0]))
    assert math.isnan(statistics.clustered_standard_error([1.0], ["a"]))
    assert all(math.isnan(end) for end in statistics.bootstrap([], [], statistics.mean))
    with pytest.raises(ConfigError, match="two samples"):
        statistics.paired_difference([1.0], [0.0])
    with pytest.raises(ConfigError, match="3 and 2 values"):
        statistics.paired_difference([1.0, 0.0, 1.0], [0.0, 1.0])
