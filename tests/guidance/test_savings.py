"""Approximate savings: what is evaluated, what the method gets for the rest, and how far the result can be off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sld_reference import MAX, MEDIUM, Story, drawn, safe, sample, walk

from sldcore.guidance.base import Guidance, GuidanceRun, GuidedSample
from sldcore.guidance.casg import CASG
from sldcore.guidance.negative import Negative, NegativeSLD
from sldcore.guidance.savings import ConceptEvery, shortened, start_saving
from sldcore.guidance.sld import SLD
from sldcore.policy import SafetyPolicy
from sldcore.policy_parts import Savings
from sldcore.types import Guided, Row

METHODS: dict[str, tuple[Guidance, int]] = {
    "sld": (SLD(), 3),
    "sld+negative": (NegativeSLD(), 1),
    "casg": (CASG(), 3),
}
"""Methods, and how many concepts a sample has with them."""


def members(name: str, acting: Sequence[Sequence[float]]) -> list[GuidedSample]:
    """Samples 0, 1, ... with options that differ."""
    count = METHODS[name][1]
    each = [
        {**options, "choose_until": until} if name == "casg" else options
        for options, until in ((MAX, 0), (MEDIUM, 2))
    ]
    return [
        sample(name, each[index % 2], own, index=index, concepts=tuple(range(count)))
        for index, own in enumerate(acting)
    ]


def same(one: Guided | None, other: Guided | None) -> bool:
    if one is None or other is None:
        return one is other
    uncond = one.uncond is other.uncond is None or (
        one.uncond is not None and other.uncond is not None and torch.equal(one.uncond, other.uncond)
    )
    return (
        torch.equal(one.cond, other.cond)
        and torch.equal(one.terms, other.terms)
        and one.applied == other.applied
        and uncond
    )


# --- concept_every ---------------------------------------------------------------------------------------------------


def guessed(story: Story, every: Sequence[int]) -> Story:
    """The predictions that a method gets if the rows of sample b are asked for at every step: e_u + the last difference."""
    concepts = story.concepts.copy()
    for b, n in enumerate(every):
        for t in range(story.steps):
            last = t - t % n
            for k in range(concepts.shape[2]):
                concepts[t, b, k] = story.uncond[t, b] + (story.concepts[last, b, k] - story.uncond[last, b])
    return replace(story, concepts=concepts)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    every=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(2, 3, 3), (4, 6), (2, 2, 2, 3)]),
)
def test_the_method_gets_the_last_difference_for_rows_that_were_not_evaluated(
    name: str, every: list[int], seed: int, shape: tuple[int, ...]
) -> None:
    """Whole multiples of 1/64 are added without rounding, so that nothing may differ."""
    story = drawn(seed, steps=7, shape=shape)
    samples = members(name, [(1.0,) * 7] * 3)
    method, schedule = METHODS[name][0], story.schedule
    expected = walk(method.start(samples, schedule), guessed(story, every))
    saving = ConceptEvery(method.start(samples, schedule), dict(enumerate(every)))
    for t, ((rows, made), (asked, whole)) in enumerate(zip(walk(saving, story), expected, strict=True)):
        assert made is not None and whole is not None
        assert rows == tuple(row for row in asked if t % every[row.sample] == 0)
        assert torch.equal(made.cond, whole.cond) and made.applied == whole.applied
        assert (made.uncond is None) == (whole.uncond is None)
        if made.uncond is not None and whole.uncond is not None:
            assert torch.equal(made.uncond, whole.uncond)
        assert torch.equal(made.terms, whole.terms[[asked.index(row) for row in rows]])


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_call_is_the_method_itself(name: str, dtype: torch.dtype) -> None:
    story = drawn(steps=6)
    samples = members(name, [(0, 1, 1, 0, 1, 1), (1, 1, 0.5, 1, 1, 0)])
    method, schedule = METHODS[name][0], story.schedule
    plain = walk(method.start(samples, schedule), story, dtype)
    for saving in (
        ConceptEvery(method.start(samples, schedule), {}),
        ConceptEvery(method.start(samples, schedule), {0: 1, 1: 1}),
        start_saving(
            lambda own: method.start(own, schedule), samples, schedule, {0: Savings(), 1: Savings()}
        ),
    ):
        for (rows, made), (asked, whole) in zip(walk(saving, story, dtype), plain, strict=True):
            assert rows == asked and same(made, whole)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_sample_in_a_batch_is_as_alone(name: str) -> None:
    story = drawn(seed=2, steps=8)
    samples = members(name, [(0, 1, 1, 1, 1, 1, 1, 0), (1,) * 8, (0, 0, 0, 1, 1, 0.5, 1, 1)])
    method, schedule, every = METHODS[name][0], story.schedule, (2, 3, 3)
    together = safe(walk(ConceptEvery(method.start(samples, schedule), dict(enumerate(every))), story), story)
    for each, n in zip(samples, every, strict=True):
        own = story.of([each.index])
        run = ConceptEvery(method.start([replace(each, index=0)], schedule), {0: n})
        np.testing.assert_array_equal(safe(walk(run, own), own)[:, 0], together[:, each.index])


def test_a_row_is_evaluated_at_once_when_it_is_asked_for_again() -> None:
    story = drawn(batch=1, steps=9)
    options = {**MEDIUM, "momentum_scale": 0.0}
    run = SLD().start([sample("sld", options, (1, 1, 0, 1, 1, 1, 1, 0, 1))], story.schedule)
    steps = walk(ConceptEvery(run, {0: 3}), story)
    assert [len(rows) for rows, _ in steps] == [1, 0, 0, 1, 0, 0, 1, 0, 1]
    assert [guided is not None for _, guided in steps] == [
        True,
        True,
        False,
        True,
        True,
        True,
        True,
        False,
        True,
    ]
    assert all(
        guided is None or (guided.applied == (0,) and len(guided.terms) == len(rows))
        for rows, guided in steps
    )


def test_predictions_stay_within_half_precision() -> None:
    ones = np.ones((2, 1, 1, 1, 1))
    uncond = np.array([-6e4, 6e4]).reshape(2, 1, 1, 1, 1)
    story = Story(uncond, 0 * ones, 0 * ones[:, :, None], (1.0, 1.0))
    run = ConceptEvery(
        SLD().start([sample("sld", {**MAX, "threshold": 1e6}, (1, 1))], story.schedule), {0: 2}
    )
    _, (rows, guided) = walk(run, story, torch.float16)
    assert rows == () and guided is not None and guided.cond.dtype == torch.float16
    assert guided.cond.isfinite().all()


def test_nan_in_a_prediction_shows_until_the_next_evaluation() -> None:
    story = drawn(batch=1, steps=3)
    story.concepts[0] = np.nan
    run = ConceptEvery(
        SLD().start([sample("sld", {**MAX, "momentum_scale": 0.0}, (1,) * 3)], story.schedule), {0: 2}
    )
    finite = [bool(guided is not None and guided.cond.isfinite().all()) for _, guided in walk(run, story)]
    assert finite == [False, False, True]


def test_asking_twice_at_one_step_changes_nothing() -> None:
    story = drawn(batch=1, steps=4)
    run = ConceptEvery(SLD().start([sample("sld", MAX, (1,) * 4)], story.schedule), {0: 2})
    asked = []
    for t in range(4):
        step = story.schedule.step(t)
        acts, rows, again = run.acts(step), run.rows(step), run.rows(step)
        assert acts and rows == again
        run.combine(step, story.predictions(t, rows))
        asked.append(len(rows))
    assert asked == [1, 0, 1, 0]


def test_texts_and_samples_left_out_are_the_methods() -> None:
    class LeavingOut:
        """Leaves sample 1 out."""

        def rows(self, step: Any) -> tuple[Row, ...]:
            return ()

        def combine(self, step: Any, predictions: Any) -> Guided:
            raise AssertionError("nothing was asked for")

        def left_out(self, step: Any) -> frozenset[int]:
            return frozenset({1})

    step = drawn(steps=1).schedule.step(0)
    negative = Negative().start([sample("negative", {}, (1,), index=2)], drawn(steps=1).schedule)
    assert dict(ConceptEvery(negative, {2: 2}).own_texts(step)) == {(2, "uncond"): 0}
    assert ConceptEvery(negative, {2: 2}).left_out(step) == frozenset()
    assert not ConceptEvery(negative, {2: 2}).acts(step)
    assert ConceptEvery(LeavingOut(), {}).left_out(step) == {1}
    assert ConceptEvery(LeavingOut(), {}).own_texts(step) == {}


# --- momentum_error --------------------------------------------------------------------------------------------------


def cut(error: float, warm_up: int, options: dict[str, float] = MAX, **fields: Any) -> int:
    """How many of the calls of a warm-up are left."""
    story = drawn(batch=1, steps=warm_up + 2)
    given = sample("sld", options, (0,) * warm_up + (1, 1), **fields)
    (short,) = shortened([given], story.schedule, error)
    rows = [bool(asked) for asked, _ in walk(SLD().start([short], story.schedule), story)]
    assert rows[warm_up:] == [True, True]
    building = rows[:warm_up]
    assert building == [False] * (warm_up - sum(building)) + [True] * sum(building)
    return sum(building)


@pytest.mark.parametrize("options", [MAX, MEDIUM])
@pytest.mark.parametrize("error", [0.5, 0.1, 0.05, 0.01])
def test_a_long_warm_up_is_cut_to_the_closed_form(options: dict[str, float], error: float) -> None:
    s_m, beta, total = options["momentum_scale"], options["momentum_beta"], 30
    rho = beta + (1 - beta) * s_m
    expected = ceil(log(error * (1 - rho**total) + rho**total) / log(rho))
    assert cut(error, total, options) == expected


def test_figures_of_the_strong_preset() -> None:
    """rho is 0.7 + 0.3 * 0.5 = 0.85: of seven calls of warm-up none can go at 5 percent, and three at 30."""
    strong = {"scale": 2000.0, "threshold": 0.025, "momentum_scale": 0.5, "momentum_beta": 0.7}
    assert [cut(error, 7, strong) for error in (0.0, 0.05, 0.3, 0.9)] == [7, 7, 4, 1]


def test_where_all_calls_count_the_same_that_share_of_them_is_cut() -> None:
    assert cut(0.3, 10, {**MAX, "momentum_scale": 1.0}) == 7


def test_nothing_is_cut_without_an_error() -> None:
    samples = [sample("sld", MAX, (0, 0, 1)), sample("casg", {**MAX, "choose_until": 0}, (0, 0, 1), index=1)]
    story = drawn(steps=3)
    assert shortened(samples, story.schedule, 0.0) == samples


def test_calls_that_say_nothing_of_the_noise_and_shut_concepts_are_cut_first() -> None:
    story = drawn(batch=1, steps=6, factors=(0.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    whole = sample("sld", MAX, (0, 0, 0, 0, 1, 1))
    late = replace(whole, concept_acting=((0, 0, 1, 1, 1, 1),))
    for one, first in ((whole, 1), (late, 2)):
        (short,) = shortened([one], story.schedule, 1e-9)
        assert short.builds_from == first
        plain, saved = (
            safe(walk(SLD().start([each], story.schedule), story), story) for each in (one, short)
        )
        np.testing.assert_array_equal(plain, saved)


def test_a_window_without_warm_up_and_one_that_never_opens_are_left_alone() -> None:
    schedule = drawn(steps=3).schedule
    for acting in ((1, 1, 1), (0, 0, 0)):
        given = sample("sld", MAX, acting)
        assert shortened([given], schedule, 0.5) == [given]


def test_calls_between_two_openings_of_a_window_still_build() -> None:
    story = drawn(batch=1, steps=8)
    (short,) = shortened([sample("sld", MAX, (0, 0, 0, 1, 0, 0, 1, 0))], story.schedule, 0.9)
    asked = [len(rows) for rows, _ in walk(SLD().start([short], story.schedule), story)]
    assert asked == [0, 0, 1, 1, 1, 1, 1, 0]


def test_a_method_without_momentum_is_refused_when_the_policy_is_read() -> None:
    content = {"concepts": ["nudity"], "guidance": {"method": "casg", "savings": {"momentum_error": 0.1}}}
    with pytest.raises(
        ValidationError, match=r"warm-up of sld and sld\+negative, and method 'casg' has none"
    ):
        SafetyPolicy.model_validate(content)
    content["guidance"]["savings"] = {"concept_every": 2}
    assert SafetyPolicy.model_validate(content).guidance.savings == Savings(concept_every=2)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    error=st.sampled_from([0.001, 0.01, 0.05, 0.2, 0.5, 0.9]),
    momentum_scale=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    momentum_beta=st.sampled_from([0.0, 0.4, 0.7, 0.95]),
    warm_up=st.integers(1, 12),
    openings=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=15, max_size=15),
    weights=st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 1.0])),
    factors=st.lists(st.sampled_from([1.0, 1.0, 0.5, -2.0, 0.0]), min_size=15, max_size=15),
    steady=st.booleans(),
)
def test_the_result_is_off_by_no_more_than_the_bound(
    seed: int,
    error: float,
    momentum_scale: float,
    momentum_beta: float,
    warm_up: int,
    openings: list[float],
    weights: tuple[float, float],
    factors: list[float],
    steady: bool,
) -> None:
    """The bound of the docstring, by a loop over calls; ``steady`` predictions, always the same and far apart, come close."""
    steps = warm_up + 3
    story = drawn(seed, batch=1, steps=steps, concepts=2, factors=tuple(factors[:steps]))
    if steady:
        ones = np.ones_like(story.cond)
        story = replace(story, uncond=0 * ones, cond=-2 * ones, concepts=np.stack([ones, ones], axis=2))
    options = {
        "scale": 1000.0,
        "threshold": 100.0 if steady else 0.5,
        "momentum_scale": momentum_scale,
        "momentum_beta": momentum_beta,
    }
    given = sample(
        "sld",
        options,
        (0.0,) * warm_up + (1.0, 0.5, 1.0),
        concepts=(0, 1),
        weights=weights,
        concept_acting=((1.0,) * steps, tuple(openings[:steps])),
    )
    (short,) = shortened([given], story.schedule, error)
    plain, saved = (safe(walk(SLD().start([each], story.schedule), story), story) for each in (given, short))
    rho = momentum_beta + (1 - momentum_beta) * momentum_scale
    used = (0, 1) if weights[1] else (0,)
    largest = max(
        abs(story.factors[t]) * np.abs(story.concepts[t, 0, k] - story.uncond[t, 0]).max()
        for t in range(warm_up)
        for k in used
    )
    bound = 0.0
    for t in range(warm_up):
        share = weights[0] + weights[1] * openings[t] if story.factors[t] else 0.0
        bound = rho * bound + (1 - momentum_beta) * share * largest
    for t in range(warm_up, steps):
        off = np.abs(plain[t] - saved[t]).max() * abs(story.factors[t])
        assert off <= given.acting[t] * momentum_scale * error * bound * (1 + 1e-5) + 1e-5
        bound *= rho


# --- both, and what a policy says ------------------------------------------------------------------------------------


def test_both_savings_of_several_samples_at_once() -> None:
    story = drawn(batch=3, steps=8)
    samples = [sample("sld", MAX, (0, 0, 0, 0, 1, 1, 1, 1), index=index) for index in range(3)]
    started: list[list[GuidedSample]] = []

    def start(own: Sequence[GuidedSample]) -> GuidanceRun:
        started.append(list(own))
        return SLD().start(own, story.schedule)

    savings = {0: Savings(concept_every=2, momentum_error=0.6), 2: Savings(concept_every=3)}
    asked = [rows for rows, _ in walk(start_saving(start, samples, story.schedule, savings), story)]
    assert [each.builds_from for each in started[0]] == [2, 0, 0]
    turns = [[t for t in range(8) if any(row.sample == index for row in asked[t])] for index in range(3)]
    assert turns == [[2, 4, 6], list(range(8)), [0, 3, 6]]


def test_without_savings_the_run_is_the_methods_own() -> None:
    story = drawn(batch=1)
    run = SLD().start([], story.schedule)
    assert start_saving(lambda own: run, [], story.schedule, {0: Savings(momentum_error=0.2)}) is run


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concept_every": 0}, "greater than or equal to 1"),
        ({"concept_every": 1.5}, "valid integer"),
        ({"concept_every": True}, "valid integer"),
        ({"momentum_error": 1.0}, "less than 1"),
        ({"momentum_error": -0.1}, "greater than or equal to 0"),
        ({"momentum_eror": 0.1}, "did you mean 'momentum_error'"),
    ],
)
def test_savings_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Savings.model_validate(given)


def test_no_saving_is_on_by_default() -> None:
    assert Savings() == Savings(concept_every=1, momentum_error=0.0)
