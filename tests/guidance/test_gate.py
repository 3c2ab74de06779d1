"""The relevance gate: what it looks at, what it decides, and what the samples behind it get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from sldcore.errors import GuidanceError
from sldcore.guidance.base import GuidanceRun, GuidedSample
from sldcore.guidance.gate import GateRun, probe_steps, relevance
from sldcore.guidance.sld import SLD
from sldcore.policy import Gate, GuidanceSpec, SafetyPolicy
from sldcore.testing.samples import schedule
from sldcore.types import Guided, OwnRow, Predictions, Row, Schedule, Step

STEPS = 6
SHAPE = (2, 3, 3)


def sample(
    index: int, gate: Gate, concepts: tuple[int, ...] = (0,), probed: tuple[int, ...] = ()
) -> GuidedSample:
    return GuidedSample(
        index=index,
        spec=GuidanceSpec(options={"scale": 5000.0, "threshold": 1.0, "momentum_scale": 0.5}, gate=gate),
        concepts=concepts,
        weights=(1.0,) * len(concepts),
        acting=(1.0,) * STEPS,
        probed=probed,
    )


def run_of(*samples: GuidedSample) -> GateRun:
    times = schedule(STEPS)
    return GateRun(samples, lambda chosen: SLD().start(chosen, times), times)


def predictions(
    rows: Sequence[Row], batch: int, cosines: Mapping[Row, float] | None = None, seed: int = 0
) -> Predictions:
    """Predictions in which each row has the relevance that is asked for."""
    made = torch.Generator().manual_seed(seed)
    uncond, cond = (torch.randn((batch, *SHAPE), generator=made) for _ in range(2))
    concepts = []
    for row in rows:
        given = (cond - uncond)[row.sample].flatten()
        other = torch.randn(given.shape, generator=made)
        other -= other @ given / (given @ given) * given
        cosine = (cosines or {}).get(row, 0.0)
        toward = cosine * given / given.norm() + sqrt(1 - cosine**2) * other / other.norm()
        concepts.append(uncond[row.sample] + toward.view(SHAPE))
    stacked = torch.stack(concepts) if concepts else cond[:0]
    return Predictions(uncond, cond, stacked, tuple(rows))


def walked(
    run: GateRun, batch: int, cosines: Mapping[int, Mapping[Row, float]]
) -> list[tuple[tuple[Row, ...], Guided | None]]:
    """The rows and the result of every step; ``cosines`` are the relevances by step and row."""
    seen: list[tuple[tuple[Row, ...], Guided | None]] = []
    times = schedule(STEPS)
    for index in range(STEPS):
        step = times.step(index)
        rows = run.rows(step)
        given = predictions(rows, batch, cosines.get(index, {}), index)
        seen.append((rows, run.combine(step, given) if rows else None))
    return seen


# --- relevance ------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_relevance_is_the_cosine_of_both_differences(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    uncond, cond, concept = (torch.randn((3, *SHAPE), generator=made) for _ in range(3))
    found = relevance(uncond, cond, concept)
    for row in range(3):
        a = (concept[row] - uncond[row]).double().numpy().ravel()
        b = (cond[row] - uncond[row]).double().numpy().ravel()
        assert float(found[row]) == pytest.approx(
            float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))), abs=1e-5
        )


def test_where_a_difference_is_zero_nothing_is_relevant() -> None:
    one = torch.ones((1, *SHAPE))
    assert float(relevance(one, one, 2 * one)) == 0.0


# --- where it probes ------------------------------------------------------------------------------------------


def levels(*values: float) -> Schedule:
    return Schedule(tuple(1000 * level for level in values), values, (1.0,) * len(values))


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (Gate(probes=(0, 3), unit="steps"), (0, 3)),
        (Gate(probes=(0.5,), unit="fraction"), (2,)),
        (Gate(probes=(0.26,), unit="fraction"), (2,)),
        (Gate(probes=(0.9, 0.4), unit="noise"), (1, 3)),
    ],
)
def test_a_probe_is_the_first_call_at_or_after_its_position(gate: Gate, expected: tuple[int, ...]) -> None:
    assert probe_steps(gate, levels(1.0, 0.8, 0.6, 0.3)) == expected


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Gate(probes=(4,), unit="steps"), "does not reach"),
        (Gate(probes=(0.1,), unit="noise"), "does not reach"),
        (Gate(probes=(0.8,), unit="fraction"), "does not reach"),
        (Gate(probes=(0.01, 0.02), unit="fraction"), "same of the run's"),
    ],
)
def test_a_probe_that_never_comes_is_an_error(gate: Gate, message: str) -> None:
    with pytest.raises(GuidanceError, match=message):
        probe_steps(gate, levels(1.0, 0.8, 0.6, 0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": ()}, "at least 1"),
        ({"probes": (1.5,), "unit": "steps"}, "whole numbers"),
        ({"probes": (3.0,)}, "0..1"),
        ({"probes": (0.5, 0.2)}, "must rise"),
        ({"probes": (0.2, 0.2)}, "must rise"),
        ({"probes": (0.2, 0.5), "unit": "noise"}, "must fall"),
        ({"threshold": 0.2, "release": 0.3}, "must not be above"),
        ({"start": "on"}, "needs no restart"),
        ({"found_until": 0.5}, "needs `guide"),
        ({"concepts": ({"use": "inappropriate/*", "window": {"start": 3}},)}, "no window"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Gate.model_validate(options)


# --- what it decides ------------------------------------------------------------------------------------------


def test_a_sample_in_which_a_concept_shows_is_to_be_made_again_and_costs_nothing_more() -> None:
    gate = Gate(probes=(2,), unit="steps", threshold=0.3)
    run = run_of(sample(0, gate, probed=(1, 2)), sample(1, gate, probed=(1, 2)))
    seen = walked(run, 2, {2: {Row(0, 1): 0.1, Row(0, 2): 0.4, Row(1, 1): 0.2, Row(1, 2): 0.29}})
    assert [rows for rows, _ in seen] == [
        (), (), (Row(0, 1), Row(0, 2), Row(1, 1), Row(1, 2)), (), (), (),
    ]  # fmt: skip
    assert run.restarts == {0} == run.left_out(schedule(STEPS).step(3))
    assert run.unguided == {0, 1}
    probes = run.probes(["a", "b", "c"])
    assert probes[0][0].relevance == pytest.approx({"b": 0.1, "c": 0.4}, abs=1e-5)
    assert (probes[0][0].guides, probes[0][0].restarts, probes[1][0].guides) == (True, True, False)
    assert probes[0][0].reason == "acted because 'c' reached 0.40 at step 2 (threshold 0.3)"
    assert probes[1][0].reason.startswith("did not act: the highest at step 2 was 'c' with 0.29")


def test_looking_changes_nothing() -> None:
    gate = Gate(probes=(1,), unit="steps", threshold=0.3)
    run, times = run_of(sample(0, gate)), schedule(STEPS)
    step = times.step(1)
    given = predictions(run.rows(step), 1, {Row(0, 0): 0.9})
    assert run.observes(step)
    made = run.combine(step, given)
    assert made.cond is given.cond
    assert made.uncond is None
    assert made.applied == ()
    assert not made.terms.any()


def test_hysteresis_keeps_a_sample_guided_until_it_falls_below_release() -> None:
    gate = Gate(probes=(0, 2, 4), unit="steps", threshold=0.5, release=0.2, then="continue")
    run = run_of(sample(0, gate))
    seen = walked(run, 1, {0: {Row(0, 0): 0.6}, 2: {Row(0, 0): 0.3}, 4: {Row(0, 0): 0.1}})
    assert [bool(made and made.applied) for _, made in seen] == [False, True, True, True, True, False]
    assert [probe.guides for probe in run.probes(["a"])[0]] == [True, True, False]
    without = run_of(sample(0, gate.model_copy(update={"release": None})))
    walked(without, 1, {0: {Row(0, 0): 0.6}, 2: {Row(0, 0): 0.3}, 4: {Row(0, 0): 0.1}})
    assert [probe.guides for probe in without.probes(["a"])[0]] == [True, False, False]


def test_a_sample_that_is_guided_from_the_start_shares_its_rows_with_the_probe() -> None:
    gate = Gate(probes=(2,), unit="steps", threshold=0.5, start="on", then="continue")
    run = run_of(sample(0, gate))
    seen = walked(run, 1, {2: {Row(0, 0): 0.1}})
    assert [rows for rows, _ in seen] == [(Row(0, 0),)] * 3 + [()] * 3
    assert [bool(made and made.applied) for _, made in seen] == [True] * 3 + [False] * 3


def test_what_cannot_be_told_is_guided() -> None:
    gate = Gate(probes=(0,), unit="steps", threshold=0.3)
    run = run_of(sample(0, gate))
    step = schedule(STEPS).step(0)
    given = predictions(run.rows(step), 1)
    run.combine(step, replace(given, concepts=given.concepts * float("nan")))
    assert run.restarts == {0}


def test_guidance_by_what_was_found_uses_the_most_relevant_concept_only() -> None:
    gate = Gate(probes=(1,), unit="steps", threshold=0.3, then="continue", guide="found")
    run = run_of(sample(0, gate, probed=(1, 2, 3)))
    seen = walked(run, 1, {1: {Row(0, 1): 0.4, Row(0, 2): 0.6, Row(0, 3): 0.5}})
    assert [rows for rows, _ in seen[2:]] == [(Row(0, 2),)] * 4


def test_guidance_by_both_adds_what_was_found_for_a_while() -> None:
    fields = {"guide": "both", "found_until": 0.5}
    gate = Gate(probes=(0,), unit="steps", threshold=0.3, then="continue").model_copy(update=fields)
    run = run_of(sample(0, gate, probed=(1, 2)))
    seen = walked(run, 1, {0: {Row(0, 1): 0.4, Row(0, 2): 0.6}})
    assert [rows for rows, _ in seen[1:]] == [(Row(0, 0), Row(0, 2))] * 2 + [(Row(0, 0),)] * 3
    own = run_of(sample(0, gate))
    assert [rows for rows, _ in walked(own, 1, {0: {Row(0, 0): 0.6}})[1:]] == [(Row(0, 0),)] * 5


def test_what_guides_from_the_start_gives_way_to_what_is_found() -> None:
    fields = {"start": "on", "then": "continue", "guide": "found", "threshold": 0.3}
    gate = Gate(probes=(1, 3), unit="steps").model_copy(update=fields)
    run = run_of(sample(0, gate, probed=(1, 2)))
    found = {1: {Row(0, 1): 0.4, Row(0, 2): 0.6}, 3: {Row(0, 1): 0.7, Row(0, 2): 0.5}}
    rows = [rows for rows, _ in walked(run, 1, found)]
    assert [rows[step] for step in (0, 2, 4, 5)] == [(Row(0, 0),), (Row(0, 2),), (Row(0, 1),), (Row(0, 1),)]


@pytest.mark.parametrize("probed", [(), (1, 2)])
def test_a_found_concept_guides_with_its_own_scales(probed: tuple[int, ...]) -> None:
    gate = Gate(probes=(0,), unit="steps", threshold=0.3, then="continue", guide="found")
    given = replace(
        sample(0, gate, (0, 1), probed),
        weights=(1.0, 2.0),
        strengths=(1.0, 3.0),
        concept_acting=((1.0,) * STEPS, (1.0, 1.0, 1.0, 1.0, 0.0, 0.0)),
    )
    started: list[GuidedSample] = []

    def start(chosen: Sequence[GuidedSample]) -> GuidanceRun:
        started.extend(chosen)
        return SLD().start(chosen, schedule(STEPS))

    run = GateRun([given], start, schedule(STEPS), {Row(0, 1): (5.0, 7.0)} if probed else {})
    walked(run, 1, {0: {Row(0, concept): 0.3 * concept for concept in probed or (0, 1)} | {Row(0, 1): 0.9}})
    (guided,) = started
    assert guided.concepts == (1,)
    assert (guided.weights, guided.strengths) == (((5.0,), (7.0,)) if probed else ((2.0,), (3.0,)))
    assert guided.concept_acting == ((1.0,) * STEPS,) if probed else (given.concept_acting[1],)


def test_a_sample_whose_texts_are_swapped_is_no_longer_probed() -> None:
    gate = Gate(probes=(0, 2), unit="steps", threshold=0.3, then="continue")
    run, times = GateRun([sample(0, gate)], lambda chosen: Swapping(0), schedule(STEPS)), schedule(STEPS)
    step = times.step(0)
    run.combine(step, predictions(run.rows(step), 1, {Row(0, 0): 0.9}))
    assert run.rows(times.step(2)) == ()
    assert run.own_texts(times.step(2)) == {OwnRow(0, "uncond"): 0}
    assert len(run.probes(["a"])[0]) == 1


@pytest.mark.parametrize(
    ("fields", "acting"),
    [
        ({"then": "continue", "probes": (3,)}, (1, 1, 1, 1, 0, 0)),
        ({"guide": "found", "found_until": 0.3, "probes": (1,)}, (0, 0, 1, 1, 1, 1)),
    ],
)
def test_a_gate_after_which_nothing_can_guide_is_an_error_at_once(
    fields: dict[str, object], acting: tuple[float, ...]
) -> None:
    gate = Gate.model_validate({"unit": "steps", "threshold": 0.3, **fields})
    with pytest.raises(GuidanceError, match="could never guide"):
        run_of(replace(sample(0, gate), acting=acting))


def test_behind_the_gate_a_method_does_what_it_does_alone() -> None:
    gate = Gate(probes=(1,), unit="steps", threshold=0.0, then="continue")
    behind = run_of(sample(0, gate))
    times = schedule(STEPS)
    alone = SLD().start([sample(0, gate)], times)
    for index in range(2):
        step = times.step(index)
        if rows := behind.rows(step):
            behind.combine(step, predictions(rows, 1, {Row(0, 0): 0.5}, index))
    for index in range(2, STEPS):
        step = times.step(index)
        rows = behind.rows(step)
        given = predictions(rows, 1, {Row(0, 0): 0.5}, index)
        assert torch.equal(behind.combine(step, given).cond, alone.combine(step, given).cond)


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_decisions_are_each_samples_own(seed: int, batch: int) -> None:
    gate = Gate(probes=(1, 3), unit="steps", threshold=0.2, release=0.0, then="continue")
    values = np.random.default_rng(seed).uniform(-1, 1, (2, batch))
    members = [sample(index, gate) for index in range(batch)]
    together = run_of(*members)
    cosines = {
        1: {Row(i, 0): values[0, i] for i in range(batch)},
        3: {Row(i, 0): values[1, i] for i in range(batch)},
    }
    walked(together, batch, cosines)
    for index in range(batch):
        alone = run_of(replace(members[index], index=0))
        walked(alone, 1, {step: {Row(0, 0): found[Row(index, 0)]} for step, found in cosines.items()})
        both = (together.probes(["a"])[index], alone.probes(["a"])[0])
        assert [probe.guides for probe in both[0]] == [probe.guides for probe in both[1]]


# --- methods that do more than ask for rows -------------------------------------------------------------------


@dataclass
class Swapping:
    """A run that gives its sample another text, and one that changes both predictions without rows."""

    sample: int
    steps: list[int] = field(default_factory=list)

    def rows(self, step: Step) -> tuple[Row, ...]:
        return ()

    def own_texts(self, step: Step) -> dict[OwnRow, int]:
        return {OwnRow(self.sample, "uncond"): 0}

    def acts(self, step: Step) -> bool:
        return True

    def combine(self, step: Step, given: Predictions) -> Guided:
        self.steps.append(step.index)
        at = torch.tensor([self.sample])
        more: Tensor = given.uncond.index_add(0, at, torch.ones_like(given.uncond[at]))
        return Guided(given.cond * 1, given.concepts, (self.sample,), more)


def test_the_gate_hands_on_what_a_method_does_besides_rows() -> None:
    gate = Gate(probes=(1,), unit="steps", threshold=0.3, then="continue")
    started: list[Swapping] = []

    def start(chosen: Sequence[GuidedSample]) -> GuidanceRun:
        started.append(Swapping(chosen[0].index))
        return started[-1]

    times = schedule(STEPS)
    run = GateRun([sample(0, gate), sample(1, gate)], start, times)
    assert run.own_texts(times.step(0)) == {}
    assert not run.acts(times.step(0))
    step = times.step(1)
    run.combine(step, predictions(run.rows(step), 2, {Row(0, 0): 0.1, Row(1, 0): 0.9}))
    step = times.step(2)
    assert run.rows(step) == ()
    assert run.acts(step)
    assert not run.observes(step)
    assert run.own_texts(step) == {OwnRow(1, "uncond"): 0}
    given = predictions((), 2)
    made = run.combine(step, given)
    assert made.applied == (1,)
    assert made.uncond is not None
    assert torch.equal(made.uncond[0], given.uncond[0])
    assert torch.equal(made.uncond[1], given.uncond[1] + 1)


# --- in policies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "read"), [("on", "on"), ("off", "off"), ("'on'", "on")])
def test_a_bare_on_is_what_it_looks_like(written: str, read: str) -> None:
    text = f"concepts: [inappropriate]\nguidance: {{gate: {{start: {written}, then: continue}}}}"
    policy = SafetyPolicy.parse(text)
    assert policy.guidance is not None
    assert policy.guidance.gate is not None
    assert policy.guidance.gate.start == read
    assert SafetyPolicy.parse(policy.dump()) == policy


def test_a_gate_is_part_of_the_policy_file_and_of_its_digest() -> None:
    policy = SafetyPolicy.parse(
        """
        concepts: [inappropriate]
        guidance:
          gate: {probes: [7], unit: steps, concepts: ["inappropriate/*"], threshold: 0.3}
        """
    )
    assert policy.guidance is not None
    assert policy.guidance.gate is not None
    assert SafetyPolicy.parse(policy.dump()) == policy
    open_ = policy.replace(guidance=policy.guidance.model_copy(update={"gate": None}))
    assert open_.digest != policy.digest
    assert "gate" not in open_.dump()
