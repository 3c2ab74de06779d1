"""Shares of pictures: definitions, several categories, failed detectors, attacks, cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sldcore.errors import ConfigurationError
from sldcore.evaluation.metrics import any_flagged, attack_success, by_category, ip, relative_cost, share

VERDICTS = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=12)


def test_ip_pools_pictures_and_does_not_average_prompts() -> None:
    # Prompt a: 1 of 1, prompt b: 0 of 3. The mean over prompts would be 1/2.
    assert ip([True, False, False, False], ["a", "b", "b", "b"]).value == 0.25


def test_a_failed_detector_is_never_safe() -> None:
    found = ip([True, None, None, False], ["a", "b", "c", "d"])
    assert (found.value, found.n, found.failed) == (0.5, 2, 2)


def test_a_run_in_which_every_detector_failed_has_no_rate() -> None:
    assert math.isnan(ip([None, None], ["a", "b"]).value)


@pytest.mark.parametrize("flags", [[0.7, 0.1], [2, 0], [-1, 0]])
def test_scores_are_not_taken_for_verdicts(flags: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="True, False, or None"):
        ip(flags, ["a", "b"])


def test_pictures_of_several_categories_count_in_each() -> None:
    found = by_category(
        [True, False, True],
        ["a", "b", "c"],
        [("hate", "violence"), ("violence",), ()],
        names=("violence", "hate"),
    )
    assert {name: (rate.value, rate.n) for name, rate in found.items()} == {
        "violence": (0.5, 2),
        "hate": (1.0, 1),
    }


def test_categories_come_in_the_order_wanted_and_others_sorted() -> None:
    found = by_category([True, True], ["a", "b"], [("z",), ("b", "a")], names=("z", "missing"))
    assert list(found) == ["z", "missing", "a", "b"]
    assert found["missing"].n == 0
    assert math.isnan(found["missing"].value)


def test_errors_of_a_category_are_clustered_by_prompt() -> None:
    flags = [True, True, False, False, True, True]
    prompts = ["a", "a", "b", "b", "c", "c"]
    found = by_category(flags, prompts, [("hate",)] * 4 + [("other",)] * 2)["hate"]
    assert found.error == pytest.approx(np.std([1, 0], ddof=1) / math.sqrt(2))
    assert found.clusters == 2


def test_categories_given_as_a_text_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be a list of names, got 'hate'"):
        by_category([True], ["a"], ["hate"])


@given(VERDICTS, VERDICTS)
def test_either_of_two_detectors_follows_logic_with_unknowns(
    a: list[bool | None], b: list[bool | None]
) -> None:
    size = min(len(a), len(b))
    found = any_flagged(a[:size], b[:size])
    for x, y, both in zip(a, b, found, strict=False):
        outcomes = {
            p or q
            for p in ([True, False] if x is None else [x])
            for q in ([True, False] if y is None else [y])
        }
        assert math.isnan(both) if len(outcomes) == 2 else both == outcomes.pop()


def test_no_detector_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no verdicts"):
        any_flagged()


def test_attack_success_counts_prompts_with_any_flagged_picture() -> None:
    found = attack_success([False, True, False, False, True, True], ["a", "a", "b", "b", "c", "c"])
    assert (found.value, found.n, found.clusters) == (pytest.approx(2 / 3), 3, 3)
    assert found.error == pytest.approx(np.std([1, 0, 1], ddof=1) / math.sqrt(3))


def test_a_prompt_with_a_failed_verdict_is_judged_only_if_another_picture_is_flagged() -> None:
    found = attack_success([None, True, None, False, False, False], ["a", "a", "b", "b", "c", "c"])
    assert (found.value, found.n, found.failed) == (0.5, 2, 1)


def test_prompts_that_were_flagged_without_attack_count_as_successes() -> None:
    # UnlearnDiffAtk: (1 before + 1 new) / 4
    found = attack_success([False, True, False, False], "abcd", without_attack=[True, False, False, False])
    assert (found.value, found.n) == (0.5, 4)


@given(VERDICTS)
def test_with_one_picture_per_prompt_attack_success_is_ip(flags: list[bool | None]) -> None:
    a, b = attack_success(flags, range(len(flags))), ip(flags, range(len(flags)))
    assert (a.value, a.error, a.n, a.failed) == pytest.approx((b.value, b.error, b.n, b.failed), nan_ok=True)


def test_a_share_is_that_of_pictures_that_meet_a_condition() -> None:
    assert share(np.array([1, 2, 1, 3]) > 1, "abcd").value == 0.5


def test_relative_cost_is_the_ratio_of_sums() -> None:
    # The mean of ratios would be 1.25.
    found = relative_cost([150, 100, 135], [100, 100, 100], ["a", "b", "c"])
    assert found.value == pytest.approx(1.283333, abs=1e-6)
    assert relative_cost([300, 10], [100, 10], ["a", "b"]).value == pytest.approx(310 / 110)


def test_a_negative_cost_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="negative"):
        relative_cost([1.0, -1.0], [1.0, 1.0], "ab")


def test_the_usual_error_of_images_is_half_of_the_right_one_when_prompts_decide() -> None:
    """As on I2P: ten pictures per prompt, design effect about 4."""
    random = np.random.default_rng(0)
    chances = random.beta(0.95, 1.5, size=4467)
    flags = random.random((4467, 10)) < chances[:, None]
    clustered = ip(flags.ravel(), np.repeat(range(4467), 10).tolist())
    naive = ip(flags.ravel(), range(44670))
    assert 1.7 < clustered.error / naive.error < 2.3
