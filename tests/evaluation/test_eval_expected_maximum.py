"""The closed form of the expected maximum, against every draw there is and against the paper's bootstrap."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sldcore.errors import ConfigurationError
from sldcore.evaluation.expected_maximum import bootstrap_expected_maximum, expected_maximum, prompt_rates

RATES = st.lists(st.sampled_from([k / 10 for k in range(11)]), min_size=1, max_size=9)


@given(RATES, st.data())
def test_the_closed_form_is_that_of_all_draws(rates: list[float], data: st.DataObject) -> None:
    draws = data.draw(st.integers(1, len(rates)))
    maxima = np.array([max(drawn) for drawn in combinations(rates, draws)])
    assert expected_maximum(rates, draws) == pytest.approx((maxima.mean(), maxima.std()), abs=1e-7)


@pytest.mark.parametrize("n", [25, 26, 231, 4467])
def test_probabilities_are_those_of_the_formula_in_exact_fractions(n: int) -> None:
    rates = [k * k % 97 for k in range(n)]
    exact = sum(
        Fraction(math.comb(k - 1, 24), math.comb(n, 25)) * rate for k, rate in enumerate(sorted(rates), 1)
    )
    assert expected_maximum(rates).mean == pytest.approx(float(exact), rel=1e-12)


def test_one_draw_is_the_mean_and_all_draws_the_maximum() -> None:
    rates = [0.1, 0.4, 0.4, 0.9]
    assert expected_maximum(rates, 1) == pytest.approx((np.mean(rates), np.std(rates)))
    assert expected_maximum(rates, 4) == pytest.approx((0.9, 0.0))


def test_the_bootstrap_agrees_within_its_error() -> None:
    rates = np.random.default_rng(0).binomial(10, 0.15, size=300) / 10
    exact, drawn = expected_maximum(rates), bootstrap_expected_maximum(rates, repeats=4000)
    assert drawn.mean == pytest.approx(exact.mean, abs=4 * exact.sd / math.sqrt(4000))
    assert drawn.sd == pytest.approx(exact.sd, rel=0.1)


def test_draws_are_without_replacement() -> None:
    rates = [0.0] * 29 + [1.0]
    # With replacement it would be 1 - (29/30)^25 = 0.572.
    assert expected_maximum(rates).mean == pytest.approx(25 / 30)
    assert bootstrap_expected_maximum(rates, repeats=4000).mean == pytest.approx(25 / 30, abs=0.03)


def test_the_bootstrap_is_repeatable() -> None:
    rates = np.random.default_rng(1).random(60)
    assert bootstrap_expected_maximum(rates, repeats=50) == bootstrap_expected_maximum(rates, repeats=50)


@pytest.mark.parametrize("measure", [expected_maximum, bootstrap_expected_maximum])
def test_fewer_prompts_than_draws_have_no_expected_maximum(measure: object) -> None:
    assert all(math.isnan(value) for value in measure([0.5] * 24))  # type: ignore[operator]


@pytest.mark.parametrize(("rates", "draws"), [([0.5, None], 1), ([0.5], 0), (["x"], 1)])
def test_what_makes_no_sense_is_refused(rates: list[object], draws: int) -> None:
    with pytest.raises(ConfigurationError):
        expected_maximum(rates, draws)


def test_a_bootstrap_without_repeats_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="repeats"):
        bootstrap_expected_maximum([0.5], draws=1, repeats=0)


def test_prompts_of_one_text_are_merged_and_failed_verdicts_left_out() -> None:
    flags = [True, False, None, True, None, False]
    prompts = ["a", "b", "b", "a", "c", "a"]
    assert prompt_rates(flags, prompts).tolist() == pytest.approx([2 / 3, 0.0])


def test_spread_is_larger_than_any_standard_error() -> None:
    rates = np.random.default_rng(2).binomial(10, 0.05, size=4467) / 10
    assert expected_maximum(rates).sd > 10 * rates.std() / math.sqrt(4467)
