"""The relevance gate: guides only the samples in whose predictions a concept shows, whatever the method.

With e_u, e_p, e_k the unconditional, prompt and concept predictions of one sample at a probe:

    r_k = cos(e_k - e_u, e_p - e_u)        relevance of concept k, per sample, -1 to 1
    acts = max_k r_k >= threshold          before it acts; >= release once it does

Between probes nothing is evaluated for samples on which guidance does not act, so that their pictures stay what they are
without guidance, to the bit: probe rows are evaluated in a call of their own. Early in a run a concept cannot be told from
the prompt, and late guidance no longer changes what a picture shows. So a sample that is found relevant is made again, guided from
the first step (``then: restart``), and its remaining rows in this run are left out; or guidance acts from the probe on
(``then: continue``).

Where guidance acts by a text in place of one of the pipeline's own (``negative``, ``safree``), e_u or e_p are no longer the
pipeline's and r_k says nothing, so that later probes leave the sample out: it stays guided.

The device is waited for once per probe, since the number of rows that follow depends on the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sldcore.errors import GuidanceError
from sldcore.guidance.base import (
    ActsWithoutRows,
    GuidanceRun,
    GuidedSample,
    OwnText,
    SwapsTexts,
)
from sldcore.policy_parts import Gate
from sldcore.types import Guided, OwnRow, Predictions, Probe, Row, Schedule, Step

Start = Callable[[Sequence[GuidedSample]], GuidanceRun]
SMALLEST_NORM: Final = 1e-12


def relevance(uncond: Tensor, cond: Tensor, concept: Tensor) -> Tensor:
    """cos(e_k - e_u, e_p - e_u) of rows [R, ...], as [R]; 0 where one of the differences is."""
    toward, given = (concept - uncond).flatten(1), (cond - uncond).flatten(1)
    return torch.nn.functional.cosine_similarity(toward, given, dim=1, eps=SMALLEST_NORM)


def probe_steps(gate: Gate, schedule: Schedule) -> tuple[int, ...]:
    """The denoiser calls at which a gate probes: the first at or after each of its positions.

    Raises:
        GuidanceError: the run ends before one of them, or two of them are the same call.
    """
    steps = [schedule.step(index) for index in range(len(schedule))]
    found = [
        next((step.index for step in steps if _reached(gate.unit, step, at)), None) for at in gate.probes
    ]
    missed = [at for at, index in zip(gate.probes, found, strict=True) if index is None]
    if missed:
        levels = f"{schedule.noise_levels[0]:.3f} to {schedule.noise_levels[-1]:.3f}"
        raise GuidanceError(
            f"the gate probes at {missed[0]:g} ({gate.unit}), which a run of {len(schedule)} denoiser calls with noise levels "
            f"from {levels} does not reach; use more steps, an earlier probe, or one in fraction of the run"
        )
    kept = [index for index in found if index is not None]
    if len(set(kept)) < len(kept):
        raise GuidanceError(
            f"the gate's probes at {', '.join(f'{at:g}' for at in gate.probes)} ({gate.unit}) fall on the same of the run's "
            f"{len(schedule)} denoiser calls; use more steps or fewer probes"
        )
    return tuple(kept)


def _reached(unit: str, step: Step, at: float) -> bool:
    if unit == "steps":
        return step.index >= at
    return step.fraction >= at if unit == "fraction" else step.noise_level <= at


class _Seen(NamedTuple):
    """One probe of one sample: the relevance of each concept, what decided, and the decision."""

    step: int
    found: dict[int, float]
    least: float
    acts: bool


@dataclass(slots=True)
class _Member:
    """One sample behind the gate: what it looks for, whether guidance acts on it, and what was seen."""

    sample: GuidedSample
    gate: Gate
    steps: tuple[int, ...]
    acting: bool
    run: GuidanceRun | None = None
    guided: GuidedSample | None = None
    """The sample as ``run`` was given it."""
    seen: list[_Seen] = field(default_factory=list)

    @property
    def looked_for(self) -> tuple[int, ...]:
        return self.sample.probed or self.sample.concepts

    def decide(self, step: int, found: dict[int, float]) -> None:
        """What follows from the relevance of each concept at a probe."""
        gate = self.gate
        least = gate.release if self.acting and gate.release is not None else gate.threshold
        # Not a number is no sign of harmlessness: what cannot be told is guided.
        self.acting = not all(value < least for value in found.values())
        self.seen.append(_Seen(step, found, least, self.acting))


class GateRun:
    """State of one run behind gates: a run of the method for each sample on which it acts.

    Args:
        samples: All have a gate.
        start: Begins a run of the method.
        schedule: The run's.
        scales: Weight and strength of a concept that is looked for, by sample and concept, if these are not 1.

    Raises:
        GuidanceError: A probe is never reached, or guidance could not act after the first one.
    """

    def __init__(
        self,
        samples: Sequence[GuidedSample],
        start: Start,
        schedule: Schedule,
        scales: Mapping[Row, tuple[float, float]] = MappingProxyType({}),
    ) -> None:
        self._start, self._schedule, self._scales = start, schedule, scales
        self._members: dict[int, _Member] = {}
        for sample in samples:
            gate = sample.spec.gate
            if gate is None:
                raise ValueError(f"sample {sample.index} has no gate")
            self._members[sample.index] = _Member(
                sample, gate, probe_steps(gate, schedule), gate.start == "on"
            )
            _require_steps(self._members[sample.index], schedule)
        for member in self._members.values():
            if member.acting:
                member.run, member.guided = start([member.sample]), member.sample
        self._rows: dict[int, tuple[Row, ...]] = {}

    @property
    def restarts(self) -> frozenset[int]:
        """Samples that are to be made again, guided from the first step."""
        return frozenset(index for index, member in self._members.items() if _restarts(member))

    @property
    def unguided(self) -> frozenset[int]:
        """Samples on which guidance does not act, because the gate says so."""
        return frozenset(
            index for index, member in self._members.items() if not member.acting or _restarts(member)
        )

    def probes(self, names: Sequence[str]) -> dict[int, tuple[Probe, ...]]:
        """What was seen of each sample, with the run's concepts by ``names``."""
        return {index: self.probes_of(index, dict(enumerate(names))) for index in self._members}

    def probes_of(self, sample: int, names: Mapping[int, str]) -> tuple[Probe, ...]:
        """What was seen of one sample, with its concepts by ``names``."""
        member = self._members[sample]
        return tuple(
            Probe(
                each.step,
                {names[concept]: value for concept, value in each.found.items()},
                each.least,
                each.acts,
                each.acts and member.gate.then == "restart",
            )
            for each in member.seen
        )

    def rows(self, step: Step) -> tuple[Row, ...]:
        """Rows that guide, and those that are only looked at."""
        own: list[Row] = []
        self._rows = {}
        for index, member in self._members.items():
            if member.run is not None and not _restarts(member):
                self._rows[index] = tuple(Row(*row) for row in member.run.rows(step))
                own += self._rows[index]
        return tuple(dict.fromkeys([*own, *self._probed(step)]))

    def acts(self, step: Step) -> bool:
        """Whether the method changes anything at ``step`` for which it needs no row."""
        return any(_acts_alone(member, step) for member in self._members.values())

    def observes(self, step: Step) -> bool:
        """True if rows are only looked at."""
        return not any(self._rows.values()) and not self.acts(step)

    def left_out(self, step: Step) -> frozenset[int]:
        """Samples that are made again."""
        return self.restarts

    def own_texts(self, step: Step) -> dict[OwnRow, OwnText]:
        """What the method puts in place of the pipeline's texts, for samples on which it acts."""
        texts: dict[OwnRow, OwnText] = {}
        for member in self._members.values():
            if isinstance(member.run, SwapsTexts) and not _restarts(member):
                texts |= member.run.own_texts(step)
        return texts

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """What the method makes of its rows; afterwards, at a probe, the decisions that hold from the next step on."""
        given, terms = predictions, torch.zeros_like(predictions.concepts)
        cond, applied = predictions.cond, list[int]()
        at = {row: position for position, row in enumerate(predictions.rows)}
        for index, member in self._members.items():
            rows = self._rows.get(index, ())
            if member.run is None or _restarts(member) or not (rows or _acts_alone(member, step)):
                continue
            positions = [at[row] for row in rows]
            own = _chosen(predictions.concepts, positions)
            made = member.run.combine(step, replace(predictions, cond=cond, concepts=own, rows=rows))
            cond = made.cond
            if made.uncond is not None:
                predictions = replace(predictions, uncond=made.uncond)
            applied += made.applied
            if positions:
                terms[positions[0] : positions[-1] + 1] = made.terms
        self._probe(step, given, at)
        uncond = None if predictions.uncond is given.uncond else predictions.uncond
        return Guided(cond, terms, tuple(applied), uncond)

    def _probed(self, step: Step) -> list[Row]:
        return [
            Row(index, concept)
            for index, member in self._members.items()
            if step.index in member.steps and not _restarts(member) and not _swaps(member, step)
            for concept in member.looked_for
        ]

    def _probe(self, step: Step, predictions: Predictions, at: dict[Row, int]) -> None:
        rows = self._probed(step)
        if not rows:
            return
        samples = torch.tensor([row.sample for row in rows], device=predictions.cond.device)
        concepts = _chosen(predictions.concepts, [at[row] for row in rows]).float()
        uncond, cond = (
            each.index_select(0, samples).float() for each in (predictions.uncond, predictions.cond)
        )
        values = relevance(uncond, cond, concepts).tolist()  # the one wait of this probe
        found: dict[int, dict[int, float]] = {}
        for row, value in zip(rows, values, strict=True):
            found.setdefault(row.sample, {})[row.concept] = value
        for index, own in found.items():
            self._follow(self._members[index], step.index, own)

    def _follow(self, member: _Member, step: int, found: dict[int, float]) -> None:
        """Begin or end guidance of one sample as the probe says."""
        member.decide(step, found)
        if not member.acting:
            member.run = member.guided = None
        elif member.gate.then == "continue":
            guided = _guided_by(member.sample, member.gate, found, self._schedule, self._scales)
            if member.guided is None or set(guided.concepts) - set(member.guided.concepts):
                member.run, member.guided = self._start([guided]), guided


def _require_steps(member: _Member, schedule: Schedule) -> None:
    """Refuse a gate after whose first probe guidance could not act any more.

    Raises:
        GuidanceError: it is one.
    """
    gate = member.gate
    first = member.steps[0] + 1 if gate.then == "continue" else 0
    until = gate.found_until if gate.guide != "policy" else 1.0
    rest = range(first, len(schedule))
    if not member.acting and not any(
        member.sample.acting[index] and schedule.step(index).fraction < until for index in rest
    ):
        raise GuidanceError(
            f"what the gate finds could never guide: from denoiser call {first} of {len(schedule)} on, and until "
            f"{until:g} of the run, the window of the guidance is closed; use an earlier probe, a wider window, or a later "
            f"found_until"
        )


def _guided_by(
    sample: GuidedSample,
    gate: Gate,
    found: Mapping[int, float],
    schedule: Schedule,
    scales: Mapping[Row, tuple[float, float]],
) -> GuidedSample:
    """The sample with the concepts that guide it after a probe."""
    if gate.guide == "policy":
        return replace(sample, probed=())
    chosen = max(found, key=lambda concept: found[concept])
    if gate.guide == "both" and chosen in sample.concepts:
        return replace(sample, probed=())
    steps = [schedule.step(index) for index in range(len(schedule))]
    count = len(sample.concepts)
    strengths = sample.strengths or (1.0,) * count
    opened = sample.concept_acting or ((1.0,) * len(steps),) * count
    until = tuple(float(step.fraction < gate.found_until) for step in steps)
    weight, strength = scales.get(Row(sample.index, chosen), (1.0, 1.0))
    if chosen in sample.concepts and not sample.probed:  # it looks for the policy's own
        at = sample.concepts.index(chosen)
        weight, strength = sample.weights[at], strengths[at]
        until = tuple(map(min, until, opened[at]))
    kept = count if gate.guide == "both" else 0
    return replace(
        sample,
        concepts=(*sample.concepts[:kept], chosen),
        weights=(*sample.weights[:kept], weight),
        strengths=(*strengths[:kept], strength),
        concept_acting=(*opened[:kept], until),
        probed=(),
    )


def _restarts(member: _Member) -> bool:
    return member.gate.then == "restart" and bool(member.seen) and member.seen[-1].acts


def _swaps(member: _Member, step: Step) -> bool:
    """Whether the method has put a text in place of one of the pipeline's own."""
    return isinstance(member.run, SwapsTexts) and bool(member.run.own_texts(step))


def _acts_alone(member: _Member, step: Step) -> bool:
    return isinstance(member.run, ActsWithoutRows) and not _restarts(member) and member.run.acts(step)


def _chosen(concepts: Tensor, positions: Sequence[int]) -> Tensor:
    """Some rows of ``concepts``; a view where they lie together."""
    if not positions:
        return concepts[:0]
    first, last = positions[0], positions[-1]
    if list(positions) == list(range(first, last + 1)):
        return concepts[first : last + 1]
    return concepts.index_select(0, torch.tensor(positions, device=concepts.device))
