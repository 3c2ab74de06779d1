"""CASG against plain loops in float64: the choice of a concept, SLD with it, and the choice that stays."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sld_reference import MAX, MEDIUM, Array, Story, drawn, safe, sample, term, walk

from sldcore.catalogue import checked_options
from sldcore.errors import PluginError
from sldcore.guidance.base import GuidedSample
from sldcore.guidance.casg import CASG, CASGRun, conflict
from sldcore.guidance.kinds import KINDS, CASGOptions
from sldcore.guidance.sld import SLD
from sldcore.testing import GuidanceContract

PAPER = {**MAX, "choose_until": 0}


# --- the reference ---------------------------------------------------------------------------------------------------


def chosen_of(e_u: Array, e_p: Array, concepts: dict[int, Array]) -> int:
    """The concept of the largest <g_k, e_p - e_u> / |g_k|, number by number."""
    scores = {}
    for k, e_k in concepts.items():
        product = size = 0.0
        for at in np.ndindex(e_u.shape):
            g = e_k[at] - e_u[at]
            product += g * (e_p[at] - e_u[at])
            size += g * g
        scores[k] = product / sqrt(size)
    return max(scores, key=lambda k: scores[k])


def reference(
    story: Story, samples: Sequence[GuidedSample]
) -> tuple[Array, list[dict[int, int]], list[set[Any]]]:
    """Safe predictions [T, B, ...]; for each step the concept chosen for each sample, and the rows that are needed."""
    cond = story.cond.copy()
    choices: list[dict[int, int]] = [{} for _ in range(story.steps)]
    rows: list[set[Any]] = [set() for _ in range(story.steps)]
    for each in samples:
        options, b = each.spec.options, each.index
        s_m, beta = float(options["momentum_scale"]), float(options["momentum_beta"])
        until, calls, fixed = int(options["choose_until"]), 0, None
        nu = np.zeros_like(story.cond[0, 0])
        last = max((t for t in range(story.steps) if each.acting[t]), default=-1)
        for t in range(story.steps):
            if not (each.acting[t] or (s_m and t < last)):
                continue
            weights = {
                k: weight * (each.concept_acting[place][t] if each.concept_acting else 1.0)
                for place, (k, weight) in enumerate(zip(each.concepts, each.weights, strict=True))
            }
            open_ones = [k for k, weight in weights.items() if weight]
            if not open_ones:
                continue
            candidates = [fixed] if fixed in open_ones else open_ones
            rows[t] |= {(b, k) for k in candidates}
            e_u, e_p, factor = story.uncond[t, b], story.cond[t, b], story.factors[t]
            h = chosen_of(e_u, e_p, {k: story.concepts[t, b, k] for k in candidates})
            choices[t][b] = h
            if fixed is None and len(candidates) > 1:
                calls += 1
                fixed = h if calls == until else None
            scale = float(options["scale"]) * dict(zip(each.concepts, each.strengths, strict=True))[h]
            e_s, threshold = story.concepts[t, b, h], float(options["threshold"])
            gamma = weights[h] * term(e_u, e_p, e_s, scale, threshold, factor) + s_m * nu
            nu = beta * nu + (1 - beta) * gamma
            if factor:
                cond[t, b] -= each.acting[t] * gamma / factor
    return cond, choices, rows


OPENINGS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.0]), min_size=6, max_size=6)


@st.composite
def members(draw: st.DrawFn) -> list[GuidedSample]:
    """Up to three samples of a batch of four, each with its own concepts, windows and options."""
    chosen = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
    found = []
    for index in chosen:
        concepts = tuple(draw(st.permutations(range(4)))[: draw(st.integers(1, 4))])
        options = {**draw(st.sampled_from([MAX, MEDIUM, {**MEDIUM, "momentum_scale": 0.0}]))}
        found.append(
            sample(
                "casg",
                {**options, "choose_until": draw(st.sampled_from([0, 0, 1, 2, 3]))},
                draw(OPENINGS),
                index=index,
                concepts=concepts,
                weights=tuple(draw(st.sampled_from([0.5, 1.0, 2.0])) for _ in concepts),
                strengths=tuple(draw(st.sampled_from([0.5, 1.0])) for _ in concepts),
                concept_acting=tuple(tuple(draw(OPENINGS)) for _ in concepts),
            )
        )
    return found


@settings(max_examples=100, deadline=None)
@given(
    samples=members(),
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(2, 3, 3), (4, 6), (2, 2, 2, 3)]),
    factor=st.sampled_from([1.0, 0.5, -2.0]),
)
def test_a_run_follows_the_equations(
    samples: list[GuidedSample], seed: int, shape: tuple[int, ...], factor: float
) -> None:
    story = drawn(
        seed, batch=4, steps=6, concepts=4, shape=shape, factors=(factor, 1.0, 0.0, factor, 1.0, 1.0)
    )
    expected, choices, rows = reference(story, samples)
    steps = walk(CASG().start(samples, story.schedule), story)
    assert [set(asked) for asked, _ in steps] == rows
    np.testing.assert_allclose(safe(steps, story), expected, rtol=0, atol=2e-5)
    for t, (asked, guided) in enumerate(steps):
        if guided is not None:
            acting = {each.index for each in samples if each.acting[t] and each.index in choices[t]}
            assert set(guided.applied) == (acting if story.factors[t] else set())
            for row, own in zip(asked, guided.terms, strict=True):
                assert choices[t][row.sample] == row.concept or not own.any()


# --- the choice ------------------------------------------------------------------------------------------------------


def directions(*concepts: tuple[float, float], prompt: tuple[float, float] = (1.0, 0.25)) -> Story:
    """One step of one sample whose e_u is 0, in two dimensions."""

    def of(values: Any) -> Array:
        return np.array(values, dtype=float).reshape(1, 1, *np.shape(values)[:-1], 1, 1, 2)

    return Story(0 * of(prompt), of(prompt), of(concepts), (1.0,))


def chosen(story: Story) -> list[int]:
    """The concepts with a term that is not 0, at the only step."""
    count = story.concepts.shape[2]
    samples = [sample("casg", PAPER, (1,), concepts=tuple(range(count)))]
    ((rows, guided),) = walk(CASG().start(samples, story.schedule), story)
    assert guided is not None
    return [row.concept for row, own in zip(rows, guided.terms, strict=True) if own.any()]


def test_the_concept_of_the_nearest_direction_is_chosen_whatever_its_size() -> None:
    """<g, e_p> / |g| is 1.03 times the cosine: 8 (0, 1) has the larger product, and (1/16, 1/64) the direction."""
    assert chosen(directions((0, 8), (0.0625, 0.015625), (-4, -1))) == [1]


def test_of_equal_concepts_only_the_first_acts() -> None:
    assert chosen(directions((0, 1), (2, 0), (2, 0))) == [1]


def test_a_concept_that_predicts_nothing_of_its_own_is_not_chosen() -> None:
    assert chosen(directions((0, 0), (-1, -0.5))) == [1]
    assert chosen(directions((0, 0), (0, 0))) == []


@pytest.mark.parametrize("concept", [0, 1, 2])
def test_nan_in_any_concept_shows_in_the_result(concept: int) -> None:
    story = directions((1, 0), (0, 1), (-1, 0))
    story.concepts[0, 0, concept] = np.nan
    ((_, guided),) = walk(
        CASG().start([sample("casg", PAPER, (1,), concepts=(0, 1, 2))], story.schedule), story
    )
    assert guided is not None and not guided.cond.isfinite().all()


def test_conflict_of_half_precision_numbers_is_finite_in_float32() -> None:
    e_u, e_p, e_k = (torch.full((1, 4, 64, 64), value) for value in (-6e4, 6e4, 5.9e4))
    assert conflict(e_u, e_p, e_k).item() == pytest.approx(1.2e5 * 128, rel=1e-5)


def test_one_concept_alone_is_slds() -> None:
    story = drawn(batch=2)
    pair = [
        method.start([sample(method.name, options, (0, 1, 1, 1, 0), index=1)], story.schedule)
        for method, options in ((SLD(), MEDIUM), (CASG(), {**MEDIUM, "choose_until": 2}))
    ]
    for (rows, one), (others, other) in zip(*(walk(run, story) for run in pair), strict=True):
        assert rows == others and (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one.cond, other.cond) and torch.equal(one.terms, other.terms)


def test_a_sample_in_a_batch_is_as_alone() -> None:
    story = drawn(seed=9, batch=4, concepts=4)
    samples = [
        sample("casg", {**MAX, "choose_until": until}, acting, index=index, concepts=concepts)
        for index, concepts, until, acting in (
            (3, (0, 1, 2, 3), 0, (1, 1, 1, 1, 1)),
            (0, (2, 1), 2, (0, 1, 1, 1, 1)),
            (1, (3,), 1, (1, 1, 1, 0, 0)),
        )
    ]
    together = safe(walk(CASG().start(samples, story.schedule), story), story)
    for each in samples:
        own = story.of([each.index])
        alone = sample("casg", dict(each.spec.options), each.acting, concepts=each.concepts)
        np.testing.assert_array_equal(
            safe(walk(CASG().start([alone], own.schedule), own), own)[:, 0], together[:, each.index]
        )
    np.testing.assert_array_equal(together[:, 2], story.cond[:, 2])


# --- the choice that stays -------------------------------------------------------------------------------------------


def counted(until: int, **fields: Any) -> list[int]:
    """Rows at each of ten steps, for seven concepts."""
    story = drawn(batch=1, steps=10, concepts=7)
    given = {"acting": (1.0,) * 10, "concepts": tuple(range(7)), **fields}
    samples = [sample("casg", {**MAX, "choose_until": until}, **given)]
    return [len(rows) for rows, _ in walk(CASG().start(samples, story.schedule), story)]


@pytest.mark.parametrize(
    ("until", "rows"), [(0, [7] * 10), (1, [7] + [1] * 9), (4, [7] * 4 + [1] * 6), (20, [7] * 10)]
)
def test_rows_with_a_choice_that_stays(until: int, rows: list[int]) -> None:
    assert counted(until) == rows


def test_calls_are_counted_from_where_rows_are_needed() -> None:
    story = drawn(batch=1, steps=6)
    options = {**MAX, "momentum_scale": 0.0, "choose_until": 2}
    samples = [sample("casg", options, (0, 0, 1, 1, 1, 1), concepts=(0, 1, 2))]
    asked = walk(CASG().start(samples, story.schedule), story)
    assert [len(rows) for rows, _ in asked] == [0, 0, 3, 3, 1, 1]


def test_where_the_chosen_concept_is_shut_the_others_are_chosen_from() -> None:
    story = drawn(batch=1, steps=5)
    winner = chosen_of(story.uncond[0, 0], story.cond[0, 0], {k: story.concepts[0, 0, k] for k in range(3)})
    shut = tuple((1, 1, 0, 0, 1) if k == winner else (1,) * 5 for k in range(3))
    samples = [sample("casg", {**MAX, "choose_until": 1}, (1,) * 5, concepts=(0, 1, 2), concept_acting=shut)]
    asked = [{row.concept for row in rows} for rows, _ in walk(CASG().start(samples, story.schedule), story)]
    others = {0, 1, 2} - {winner}
    assert asked == [{0, 1, 2}, {winner}, others, others, {winner}]


def test_the_device_is_waited_for_once_and_only_by_a_choice_that_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[int] = []
    original = torch.Tensor.tolist

    def tolist(self: torch.Tensor) -> Any:
        waits.append(self.numel())
        return original(self)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    story = drawn(batch=2)
    for until, expected in ((0, []), (2, [2])):
        samples = [
            sample("casg", {**MAX, "choose_until": until}, (1,) * 5, index=index, concepts=(0, 1, 2))
            for index in range(2)
        ]
        run = CASG().start(samples, story.schedule)
        assert isinstance(run, CASGRun)
        waits.clear()
        walk(run, story)
        assert waits == expected


# --- options ---------------------------------------------------------------------------------------------------------


KIND = next(kind for kind in KINDS if kind.name == "casg")


def test_the_paper_is_the_default() -> None:
    assert checked_options(KIND, {}) == CASGOptions(**PAPER)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, 1.5, True, "2"])
def test_a_number_of_calls_is_whole_and_not_negative(value: Any) -> None:
    with pytest.raises(PluginError, match="choose_until"):
        checked_options(KIND, {"choose_until": value})


class TestCASG(GuidanceContract):
    """The contract."""

    subject = KIND


class TestCASGWithAChoiceThatStays(GuidanceContract):
    """The contract, with a choice that stays after the third call."""

    subject = KIND
    options = MappingProxyType({"choose_until": 3})
