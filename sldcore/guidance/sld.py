"""Safe Latent Diffusion, Schramowski et al., CVPR 2023, arXiv 2211.05105, equations 3, 4 and 6 to 8.

With e_u, e_p, e_S the unconditional, prompt and concept predictions of one sample, element by element:

    s  = clamp(|e_p - e_S| * s_S, max=1)                 eq. 6, as the reference code computes it
    mu = 0 where e_p - e_S >= lambda, else s
    gamma = sum_S w_S * mu_S * (e_S - e_u) + s_m * nu    eq. 4 and 7; one concept with w = 1 in the paper
    nu'   = beta * nu + (1 - beta) * gamma               eq. 8, during warm-up too
    e_p'  = e_p - a * gamma                              eq. 3, through the pipeline's own guidance

The window gives a for every step: 1 inside and 0 outside in the paper. A concept may have a window of its own, which scales
w_S, and a strength of its own, which scales s_S.

Differences are epsilon-equivalent, so that s_S and lambda mean the same for models that predict v or flow. The
arithmetic is float32 for models of lower precision: |e| * 5000 does not fit into float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sldcore import __version__
from sldcore.guidance.base import GuidanceRun, GuidedSample
from sldcore.types import Guided, Predictions, Row, Schedule, Step

SMALLEST_FACTOR: Final = 1e-4
"""Below this epsilon factor (zero terminal SNR) predictions say nothing about the noise and guidance does not act."""


def safety_term(
    e_u: Tensor,
    e_p: Tensor,
    e_s: Tensor,
    scale: Tensor | float,
    threshold: Tensor | float,
    factor: float = 1.0,
) -> Tensor:
    """Term mu * (e_S - e_u) of equations 4 and 6, epsilon-equivalent, for rows [R, C, H, W].

    ``scale`` is s_S and ``threshold`` lambda, numbers or [R, 1, 1, 1]; ``factor`` turns prediction differences
    into noise differences.
    """
    toward, away = e_p - e_s, e_s - e_u
    if factor != 1.0:
        toward, away = toward * factor, away * factor
    mu = (toward.abs() * scale).clamp(max=1.0)
    return mu.masked_fill(toward >= threshold, 0.0) * away


class SLD:
    """The method; options ``scale`` (s_S), ``threshold`` (lambda), ``momentum_scale`` (s_m), ``momentum_beta``."""

    name = "sld"
    version = __version__

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        """Begin a run.

        Raises:
            ValueError: a sample says how guidance acts for another number of steps than the schedule's.
        """
        return SLDRun(samples, schedule)


@dataclass(frozen=True, slots=True)
class MemberConcept:
    """One concept of a sample: its row, s_S, and w_S at each step, 0 where its row is not needed."""

    row: Row
    scale: float
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """One sample of the run, compiled to what each step needs to know."""

    sample: int
    concepts: tuple[MemberConcept, ...]
    threshold: float
    momentum_scale: float
    momentum_beta: float
    acting: tuple[float, ...]

    def needed(self, index: int) -> tuple[MemberConcept, ...]:
        """The concepts whose rows are needed at a step; without any, the sample and its momentum stay as they are."""
        return tuple(concept for concept in self.concepts if concept.weights[index] != 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """The indices and parameters of one step, on the device, shared by all steps that are alike.

    ``None`` in place of an index means "all of them, in order", which needs no copy.
    """

    count: int  # members that take part, M
    members: Tensor | None  # rows of the momentum that take part
    samples: Tensor | None  # rows of the batch that belong to them
    row_samples: Tensor | None  # the batch row behind each concept row
    row_members: Tensor | None  # the member behind each concept row; None if one row each
    applied: tuple[int, ...]
    acting: Tensor | float  # [M, 1, 1, 1], how much of the term is subtracted at this step
    scale: Tensor | float
    threshold: Tensor | float
    weight: Tensor | float
    momentum_scale: Tensor | float
    momentum_beta: Tensor | float


class SLDRun:
    """State of one run: the momentum nu [M, C, H, W] of its M samples, at least float32."""

    def __init__(self, samples: Sequence[GuidedSample], schedule: Schedule) -> None:
        self._members = [self._member(sample, schedule) for sample in samples]
        self._needed = self._all_needed(len(schedule))
        self._momentum: Tensor | None = None
        self._plans: list[Plan] = []

    @staticmethod
    def _member(sample: GuidedSample, schedule: Schedule) -> Member:
        return compiled(sample, schedule)

    def _all_needed(self, steps: int) -> list[tuple[MemberConcept, ...]]:
        """For each step, the concepts whose rows are needed, sample by sample."""
        return [
            tuple(concept for member in self._members for concept in member.needed(index))
            for index in range(steps)
        ]

    def rows(self, step: Step) -> tuple[Row, ...]:
        """Rows of the samples that act at this step, or that build momentum for a later one."""
        return tuple(concept.row for concept in self._needed[step.index])

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """Equations 3 to 8 for all samples at once."""
        cond = predictions.cond
        if not self._plans:  # all at once, so that no later step waits for the device
            self._plan(cond)
        plan = self._plans[step.index]
        precision = torch.promote_types(cond.dtype, torch.float32)
        e_u, e_p = predictions.uncond.to(precision), cond.to(precision)
        e_s = predictions.concepts.to(precision)
        factor = step.epsilon_factor if abs(step.epsilon_factor) > SMALLEST_FACTOR else 0.0
        own_u, own_p = take(e_u, plan.row_samples), take(e_p, plan.row_samples)
        terms = safety_term(own_u, own_p, e_s, plan.scale, plan.threshold, factor)
        if not (isinstance(plan.weight, float) and plan.weight == 1.0):
            terms = terms * plan.weight
        terms = self._kept(step, terms, own_u, own_p, e_s)
        gamma = self._with_momentum(plan, _sum_per_member(terms, plan))
        if not plan.applied or factor == 0.0:
            return Guided(cond, terms, ())
        if factor != 1.0:
            gamma = gamma / factor
        if not (isinstance(plan.acting, float) and plan.acting == 1.0):
            gamma = gamma * plan.acting
        if plan.samples is None:
            safe = (e_p - gamma).to(cond.dtype)
        else:
            safe = cond.index_copy(0, plan.samples, (e_p[plan.samples] - gamma).to(cond.dtype))
        return Guided(safe, terms, plan.applied)

    def _plan(self, cond: Tensor) -> None:
        """Make the plans of all steps, for predictions like ``cond``."""
        self._plans = _make_plans(self._members, len(self._needed), cond)

    def _kept(self, step: Step, terms: Tensor, e_u: Tensor, e_p: Tensor, e_s: Tensor) -> Tensor:
        """The terms [R, C, H, W] that are subtracted, all here; the predictions are those of each row, at least float32."""
        return terms

    def _with_momentum(self, plan: Plan, gamma: Tensor) -> Tensor:
        """Equations 7 and 8."""
        if isinstance(plan.momentum_scale, float) and plan.momentum_scale == 0.0:
            return gamma
        if self._momentum is None:
            self._momentum = gamma.new_zeros((len(self._members), *gamma.shape[1:]))
        nu = take(self._momentum, plan.members)
        gamma = gamma + plan.momentum_scale * nu
        nu = plan.momentum_beta * nu + (1 - plan.momentum_beta) * gamma
        self._momentum = nu if plan.members is None else self._momentum.index_copy(0, plan.members, nu)
        return gamma


def compiled(sample: GuidedSample, schedule: Schedule, without_term: bool = False) -> Member:
    """What each step needs to know of a sample; with ``without_term``, rows count as needed even if s_S is 0.

    Raises:
        ValueError: the sample says how guidance acts for another number of steps than the schedule's.
    """
    if len(sample.acting) != len(schedule):
        raise ValueError(f"sample {sample.index} acts at {len(sample.acting)} of {len(schedule)} steps")
    options = sample.spec.options
    scale, momentum_scale = float(options["scale"]), float(options["momentum_scale"])
    last = max((index for index, act in enumerate(sample.acting) if act), default=-1)
    count, always = len(sample.concepts), (1.0,) * len(schedule)
    strengths, windows = sample.strengths or (1.0,) * count, sample.concept_acting or (always,) * count
    builds = momentum_scale > 0 and scale > 0

    def weights(weight: float, window: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(
            weight * opening if act or (builds and sample.builds_from <= index < last) else 0.0
            for index, (act, opening) in enumerate(zip(sample.acting, window, strict=True))
        )

    return Member(
        sample=sample.index,
        concepts=tuple(
            MemberConcept(Row(sample.index, k), scale * strength, weights(weight, window))
            for k, weight, strength, window in zip(
                sample.concepts, sample.weights, strengths, windows, strict=True
            )
            if strength != 0 and (scale != 0 or without_term)
        ),
        threshold=float(options["threshold"]),
        momentum_scale=momentum_scale,
        momentum_beta=float(options["momentum_beta"]),
        acting=sample.acting,
    )


def _make_plans(members: Sequence[Member], steps: int, cond: Tensor) -> list[Plan]:
    """A plan for every step; steps that are alike share one."""
    made: dict[tuple[object, ...], Plan] = {}
    plans = []
    for step in range(steps):
        key = tuple(
            (
                index,
                member.acting[step],
                tuple((each.row, each.weights[step]) for each in member.needed(step)),
            )
            for index, member in enumerate(members)
            if member.needed(step)
        )
        if key not in made:
            made[key] = _make_plan(members, step, cond)
        plans.append(made[key])
    return plans


def _make_plan(members: Sequence[Member], step: int, cond: Tensor) -> Plan:
    active = [index for index, member in enumerate(members) if member.needed(step)]
    chosen = [members[index] for index in active]
    rows = [(position, each) for position, member in enumerate(chosen) for each in member.needed(step)]
    row_members = [position for position, _ in rows]
    samples = [member.sample for member in chosen]
    acting = [member.acting[step] for member in chosen]

    def index(values: Sequence[int], everything: int) -> Tensor | None:
        return None if list(values) == list(range(everything)) else torch.tensor(values, device=cond.device)

    return Plan(
        count=len(chosen),
        members=index(active, len(members)),
        samples=index(samples, cond.shape[0]),
        row_samples=index([each.row.sample for _, each in rows], cond.shape[0]),
        row_members=index(row_members, len(chosen)),
        applied=tuple(member.sample for member, act in zip(chosen, acting, strict=True) if act),
        acting=column(acting, cond),
        scale=column([each.scale for _, each in rows], cond),
        threshold=column([chosen[position].threshold for position in row_members], cond),
        weight=column([each.weights[step] for _, each in rows], cond),
        momentum_scale=column([member.momentum_scale for member in chosen], cond),
        momentum_beta=column([member.momentum_beta for member in chosen], cond),
    )


def column(values: Sequence[float], like: Tensor) -> Tensor | float:
    """Numbers [R] to multiply predictions ``like`` with, as [R, 1, 1, 1]; one number if they are all the same."""
    if len(set(values)) <= 1:
        return values[0] if values else 1.0
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(-1, *(1,) * (like.ndim - 1))


def take(tensor: Tensor, index: Tensor | None) -> Tensor:
    """Rows of ``tensor``; ``None`` in place of an index means all of them."""
    return tensor if index is None else tensor.index_select(0, index)


def _sum_per_member(terms: Tensor, plan: Plan) -> Tensor:
    """Add up the terms of each sample's concepts: [R, C, H, W] to [M, C, H, W]."""
    if plan.row_members is None:
        return terms
    return terms.new_zeros((plan.count, *terms.shape[1:])).index_add(0, plan.row_members, terms)
