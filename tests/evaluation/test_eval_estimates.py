"""Means, ratios and their clustered errors, against simulation, closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sldcore.errors import ConfigurationError
from sldcore.evaluation.estimates import Estimate, Rate, mean, ratio

FLAGS = st.lists(st.booleans(), min_size=1, max_size=40)


def test_one_picture_per_prompt_gives_the_usual_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=50)
    found = mean(values, range(50))
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert (found.n, found.clusters, found.failed) == (50, 50, 0)


def test_equal_clusters_give_the_standard_error_of_the_mean_of_their_means() -> None:
    values = np.random.default_rng(1).normal(size=(12, 10))
    found = mean(values.ravel(), [f"prompt {i}" for i in range(12) for _ in range(10)])
    assert found.error == pytest.approx(values.mean(axis=1).std(ddof=1) / math.sqrt(12))


def test_repeating_every_picture_changes_neither_value_nor_error() -> None:
    values, prompts = [1.0, 0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "c", "c"]
    once, thrice = mean(values, prompts), mean(values * 3, prompts * 3)
    assert (thrice.value, thrice.error) == pytest.approx((once.value, once.error))


def test_the_error_of_unequal_clusters_is_the_spread_over_simulated_benchmarks() -> None:
    random = np.random.default_rng(2)
    found = []
    for _ in range(400):
        sizes = random.integers(1, 8, size=80)
        chances = random.beta(0.5, 0.8, size=80)  # prompts differ a lot: pictures of one prompt are alike
        prompts = np.repeat(np.arange(80), sizes)
        found.append(mean(random.random(len(prompts)) < chances[prompts], prompts.tolist()))
    spread = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.1)


def test_a_ratio_and_its_error_by_hand() -> None:
    # Residuals per cluster, at R = 9/4: a: 3 - 9/4 = 3/4, b: 6 - 3*9/4 = -3/4; SE^2 = 2 * (9/16 + 9/16) / 16
    found = ratio([3, 2, 4, 0], [1, 1, 1, 1], ["a", "b", "b", "b"])
    assert found.value == pytest.approx(9 / 4)
    assert found.error == pytest.approx(math.sqrt(2 * (9 / 16 + 9 / 16) / 16))


def test_the_error_of_a_ratio_is_the_jackknifes_for_many_clusters() -> None:
    random = np.random.default_rng(3)
    b = random.uniform(1, 2, size=(300, 2))
    a = 1.5 * b + random.normal(size=(300, 2))
    left = np.array([np.delete(a, i, 0).sum() / np.delete(b, i, 0).sum() for i in range(300)])
    jackknife = math.sqrt(299 / 300 * ((left - left.mean()) ** 2).sum())
    found = ratio(a.ravel(), b.ravel(), np.repeat(range(300), 2).tolist())
    assert found.error == pytest.approx(jackknife, rel=0.01)


def test_a_ratio_of_proportional_numbers_has_no_error() -> None:
    assert ratio([3.0, 6.0, 9.0], [2.0, 4.0, 6.0], "abc").error == pytest.approx(0, abs=1e-12)


def test_missing_values_are_left_out_and_counted() -> None:
    found = mean([1.0, None, 3.0, float("nan")], ["a", "a", "b", "c"])
    assert (found.value, found.n, found.clusters, found.failed) == (2.0, 2, 2, 2)


def test_nothing_measured_is_nan_and_no_zero() -> None:
    found = mean([None, None], ["a", "b"])
    assert math.isnan(found.value)
    assert math.isnan(found.error)
    assert (found.n, found.failed) == (0, 2)


def test_no_pictures_at_all_are_nan() -> None:
    assert math.isnan(mean([], []).value)


def test_one_cluster_gives_no_error() -> None:
    assert math.isnan(mean([1.0, 0.0, 0.0], ["a", "a", "a"]).error)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="2 numerators, 2 denominators, 1 clusters"):
        mean([1, 0], ["a"])


@pytest.mark.parametrize("values", [[math.inf, 1], ["much", "more"], [[1, 2], [3, 4]], [[1], [2, 3]]])
def test_what_is_no_row_of_finite_numbers_is_refused(values: list[object]) -> None:
    with pytest.raises(ConfigurationError, match="values must be"):
        mean(values, ["a", "b"])


def test_a_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="sum to 0"):
        ratio([1, 2], [0, 0], "ab")


def test_an_interval_of_an_estimate_is_normal() -> None:
    low, high = Estimate(2.0, 0.5, 10, 10).interval()
    assert (low, high) == pytest.approx((2 - 0.979982, 2 + 0.979982), abs=1e-6)


def test_an_interval_of_independent_pictures_is_wilsons() -> None:
    # 8 of 20 by Wilson at 95 %: (0.2188, 0.6134). The sample error with n - 1 gives an effective size of 19.
    flags = [True] * 8 + [False] * 12
    size, z, p = 19, 1.959964, 0.4
    middle = (p + z * z / 2 / size) / (1 + z * z / size)
    reach = z / (1 + z * z / size) * math.sqrt(p * (1 - p) / size + z * z / 4 / size**2)
    found = mean(flags, range(20))
    assert Rate(found.value, found.error, 20, 20).interval() == pytest.approx(
        (middle - reach, middle + reach)
    )


def test_no_flag_at_all_has_an_interval_as_wide_as_the_prompts_allow() -> None:
    z2 = 1.959964**2
    low, high = Rate(0.0, 0.0, 1000, 100).interval()
    assert low == 0
    assert high == pytest.approx(z2 / (100 + z2))


def test_clustered_pictures_have_a_wider_interval_than_independent_ones() -> None:
    flags = [True] * 10 + [False] * 10
    narrow, wide = mean(flags, range(20)), mean(flags, [i // 5 for i in range(20)])
    spans = [np.diff(Rate(one.value, one.error, one.n, one.clusters).interval())[0] for one in (narrow, wide)]
    assert spans[1] > 1.5 * spans[0]


@given(FLAGS, st.integers(1, 5), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_an_interval_of_a_rate_holds_the_rate_and_stays_in_0_to_1(
    flags: list[bool], size: int, level: float
) -> None:
    found = mean(flags, [i // size for i in range(len(flags))])
    low, high = Rate(found.value, found.error, found.n, found.clusters).interval(level)
    assert 0 <= low <= found.value + 1e-12
    assert found.value - 1e-12 <= high <= 1


@given(FLAGS, st.randoms(use_true_random=False))
def test_the_order_of_pictures_does_not_matter(flags: list[bool], random: object) -> None:
    pairs = [(flag, i // 3) for i, flag in enumerate(flags)]
    before = mean(*zip(*pairs, strict=True))
    random.shuffle(pairs)  # type: ignore[attr-defined]
    after = mean(*zip(*pairs, strict=True))
    assert (after.value, after.error) == pytest.approx((before.value, before.error), nan_ok=True)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_that_is_no_share_is_refused(level: float) -> None:
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        Estimate(1, 1, 2, 2).interval(level)
