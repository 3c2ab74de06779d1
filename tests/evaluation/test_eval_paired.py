"""Paired comparisons: McNemar, bootstrap and Holm, against SciPy, enumeration and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sldcore.errors import ConfigurationError
from sldcore.evaluation.paired import holm, mcnemar, paired_bootstrap, paired_difference

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def verdicts(
    first_only: int, second_only: int, both: int = 3, neither: int = 4
) -> tuple[list[bool], list[bool]]:
    pairs = [(True, False)] * first_only + [(False, True)] * second_only + [(True, True)] * both
    pairs += [(False, False)] * neither
    first, second = zip(*pairs, strict=True)
    return list(first), list(second)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (3, 3), (12, 3), (0, 9), (700, 801), (9000, 8800)])
def test_with_one_picture_per_prompt_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    first, second = verdicts(b, c)
    found = mcnemar(first, second, range(len(first)))
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert (found.first_only, found.second_only, found.method) == (b, c, "exact")
    assert found.p == pytest.approx(expected, rel=1e-6)


def test_mcnemar_of_repeated_pictures_does_not_grow_more_certain() -> None:
    first, second = verdicts(14, 4)
    prompts = list(range(len(first)))
    many = mcnemar(first * 10, second * 10, prompts * 10)
    # By hand: ten equal pictures per prompt, (140 - 40)^2 / (18 * 100)
    assert many.method == "clustered"
    assert many.p == pytest.approx(stats.chi2.sf(100**2 / 1800, 1))
    assert many.p > 1e-3 > mcnemar(first * 10, second * 10, range(10 * len(first))).p


def test_clustered_mcnemar_is_right_under_the_null() -> None:
    random = np.random.default_rng(0)
    below = 0
    for _ in range(600):
        chances = random.beta(1, 1, size=60)[:, None]
        lean = random.normal(scale=0.3, size=(60, 1))  # a prompt's own preference, equal on average
        first = random.random((60, 5)) < np.clip(chances + lean, 0, 1)
        second = random.random((60, 5)) < np.clip(chances - lean, 0, 1)
        below += mcnemar(first.ravel(), second.ravel(), np.repeat(range(60), 5).tolist()).p < 0.05
    assert 0.03 < below / 600 < 0.075


def test_clustered_mcnemar_without_any_difference_is_1() -> None:
    assert mcnemar([True, True, False], [True, True, False], ["a", "a", "b"]).p == 1.0


def test_pairs_without_a_verdict_are_left_out_and_counted() -> None:
    found = mcnemar([True, None, True], [False, True, None], "abc")
    assert (found.first_only, found.second_only, found.failed) == (1, 0, 2)


def test_a_paired_difference_is_known_better_than_either_rate() -> None:
    random = np.random.default_rng(1)
    off = random.random(400) < 0.6
    guided = off & (random.random(400) < 0.8)
    found = paired_difference(off, guided, range(400))
    assert found.value == pytest.approx(off.mean() - guided.mean())
    assert found.error == pytest.approx((off.astype(float) - guided).std(ddof=1) / 20)
    assert found.error < 0.8 * math.hypot(off.std() / 20, guided.std() / 20)


def test_the_bootstraps_interval_and_p_are_those_of_all_resamples() -> None:
    first, second = np.array([5.0, 2.0, 2.0, 4.0]), np.array([1.0, 2.0, 0.0, 4.5])
    prompts = ["a", "b", "b", "c"]
    clusters = [np.array([4.0]), np.array([0.0, 2.0]), np.array([-0.5])]
    every = np.array(
        [np.concatenate([clusters[i] for i in drawn]).mean() for drawn in product(range(3), repeat=3)]
    )
    found = paired_bootstrap(first, second, prompts, repeats=20_000, level=0.6)
    assert found.value == pytest.approx(5.5 / 4)
    assert found.p == pytest.approx(np.mean(np.abs(every - 5.5 / 4) >= 5.5 / 4 - 1e-12), abs=0.01)
    exact = np.quantile(every, [0.2, 0.8], method="inverted_cdf")
    assert (found.low, found.high) == pytest.approx(tuple(exact))


def test_the_bootstraps_interval_is_as_wide_as_the_clustered_error_says() -> None:
    random = np.random.default_rng(2)
    shift = np.repeat(random.normal(0.3, 1, size=150), 4)
    first = shift + random.normal(scale=0.2, size=600)
    prompts = np.repeat(range(150), 4).tolist()
    found = paired_bootstrap(first, np.zeros(600), prompts, repeats=4000)
    error = paired_difference(first, np.zeros(600), prompts).error
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_equal_runs_have_a_bootstrap_p_of_1() -> None:
    found = paired_bootstrap([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], "abc", repeats=100)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_bootstrap_does_not_depend_on_how_prompts_are_named_or_ordered_within() -> None:
    values = np.random.default_rng(3).normal(size=30)
    numbered = paired_bootstrap(values, np.zeros(30), [i // 3 for i in range(30)], repeats=200)
    named = paired_bootstrap(values, np.zeros(30), [f"prompt {i // 3}" for i in range(30)], repeats=200)
    assert numbered == named


def test_the_bootstrap_leaves_out_pairs_that_lack_a_value() -> None:
    found = paired_bootstrap([1.0, None, 3.0, 5.0], [0.0, 0.0, 0.0, None], "abcd", repeats=100)
    assert (found.value, found.n, found.clusters, found.failed) == (2.0, 2, 2, 2)


def test_one_prompt_alone_gives_no_interval() -> None:
    found = paired_bootstrap([1.0, 2.0], [0.0, 0.0], ["a", "a"], repeats=100)
    assert found.value == 1.5
    assert math.isnan(found.low)
    assert math.isnan(found.p)


@pytest.mark.parametrize("given", [{"repeats": 0}, {"level": 1.0}])
def test_a_bootstrap_that_makes_no_sense_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="repeats must be positive"):
        paired_bootstrap([1.0, 0.0], [0.0, 0.0], "ab", **given)  # type: ignore[arg-type]


def test_holm_by_hand() -> None:
    # 0.01 * 4, max(0.04, 0.02 * 3), max(0.06, 0.03 * 2), 0.5
    assert holm([0.03, 0.01, 0.5, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.5, 0.06])


def test_holm_does_not_count_what_is_missing() -> None:
    found = holm([0.02, None, 0.01])
    assert found[[0, 2]].tolist() == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])


@given(P_VALUES)
def test_holm_rejects_what_the_stepwise_procedure_rejects(p: list[float]) -> None:
    rejected, m = set(), len(p)
    for k, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (m - k) > 0.05:
            break
        rejected.add(int(index))
    assert {i for i, value in enumerate(holm(p)) if value <= 0.05} == rejected


@pytest.mark.parametrize("p", [[-0.1], [1.1]])
def test_what_is_no_p_value_is_refused(p: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"0\.\.1"):
        holm(p)
