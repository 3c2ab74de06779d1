"""Safe Latent Diffusion, Schramowski et al., CVPR 2023, arXiv 2211.05105, equations 3, 4 and 6 to 8.

With e_u, e_p, e_S the unconditional, prompt and concept predictions of one sample, element by element:

    s  = clamp(|e_p - e_S| * s_S, max=1)                 eq. 6, as the reference code computes it
    mu = 0 where e_p - e_S >= lambda, else s
    gamma = sum_S w_S * mu_S * (e_S - e_u) + s_m * nu    eq. 4 and 7; one concept with w = 1 in the paper
    nu'   = beta * nu + (1 - beta) * gamma               eq. 8, during warm-up too
    e_p'  = e_p - gamma inside the window, else e_p      eq. 3, through the pipeline's own guidance

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
from sldcore.guidance.windows import acting_steps
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
            GuidanceError: a sample's window opens at no step of the schedule.
        """
        return SLDRun(samples, schedule)


@dataclass(frozen=True, slots=True)
class _Member:
    """One sample of the run, compiled to what each step needs to know."""

    sample: int
    rows: tuple[Row, ...]
    weights: tuple[float, ...]
    scale: float
    threshold: float
    momentum_scale: float
    momentum_beta: float
    acting: tuple[bool, ...]
    needed: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The indices and parameters of one set of rows, on the device, reused at every step with the same rows.

    ``None`` in place of an index means "all of them, in order", which needs no copy.
    """

    count: int  # members that take part, M
    members: Tensor | None  # rows of the momentum that take part
    samples: Tensor | None  # rows of the batch that belong to them
    row_samples: Tensor | None  # the batch row behind each concept row
    row_members: Tensor | None  # the member behind each concept row; None if one row each
    applied: tuple[int, ...]
    mask: Tensor | None  # [M, 1, 1, 1], 1 where the term is subtracted at this step; None if everywhere
    scale: Tensor | float
    threshold: Tensor | float
    weight: Tensor | float
    momentum_scale: Tensor | float
    momentum_beta: Tensor | float


class SLDRun:
    """State of one run: the momentum nu [M, C, H, W] of its M samples, at least float32."""

    def __init__(self, samples: Sequence[GuidedSample], schedule: Schedule) -> None:
        self._members = [_member(sample, schedule) for sample in samples]
        self._momentum: Tensor | None = None
        self._plans: dict[tuple[object, ...], _Plan] = {}

    def rows(self, step: Step) -> tuple[Row, ...]:
        """Rows of the samples that act at this step, or that build momentum for a later one."""
        return tuple(row for member in self._members if member.needed[step.index] for row in member.rows)

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """Equations 3 to 8 for all samples at once."""
        plan = self._plan(step, predictions)
        cond = predictions.cond
        precision = torch.promote_types(cond.dtype, torch.float32)
        e_u, e_p = predictions.uncond.to(precision), cond.to(precision)
        e_s = predictions.concepts.to(precision)
        factor = step.epsilon_factor if abs(step.epsilon_factor) > SMALLEST_FACTOR else 0.0
        terms = safety_term(
            _take(e_u, plan.row_samples),
            _take(e_p, plan.row_samples),
            e_s,
            plan.scale,
            plan.threshold,
            factor,
        )
        if not (isinstance(plan.weight, float) and plan.weight == 1.0):
            terms = terms * plan.weight
        gamma = self._with_momentum(plan, _sum_per_member(terms, plan))
        if not plan.applied or factor == 0.0:
            return Guided(cond, terms, ())
        if factor != 1.0:
            gamma = gamma / factor
        if plan.mask is not None:
            gamma = gamma * plan.mask
        if plan.samples is None:
            safe = (e_p - gamma).to(cond.dtype)
        else:
            safe = cond.index_copy(0, plan.samples, (e_p[plan.samples] - gamma).to(cond.dtype))
        return Guided(safe, terms, plan.applied)

    def _with_momentum(self, plan: _Plan, gamma: Tensor) -> Tensor:
        """Equations 7 and 8."""
        if isinstance(plan.momentum_scale, float) and plan.momentum_scale == 0.0:
            return gamma
        if self._momentum is None:
            self._momentum = gamma.new_zeros((len(self._members), *gamma.shape[1:]))
        nu = _take(self._momentum, plan.members)
        gamma = gamma + plan.momentum_scale * nu
        nu = plan.momentum_beta * nu + (1 - plan.momentum_beta) * gamma
        self._momentum = nu if plan.members is None else self._momentum.index_copy(0, plan.members, nu)
        return gamma

    def _plan(self, step: Step, predictions: Predictions) -> _Plan:
        cond = predictions.cond
        active = [index for index, member in enumerate(self._members) if member.needed[step.index]]
        acting = tuple(self._members[index].acting[step.index] for index in active)
        key = (tuple(active), acting, cond.device, cond.ndim)
        if key not in self._plans:
            self._plans[key] = _make_plan(self._members, active, acting, cond)
        return self._plans[key]


def _member(sample: GuidedSample, schedule: Schedule) -> _Member:
    options = sample.spec.options
    scale, momentum_scale = float(options["scale"]), float(options["momentum_scale"])
    acting = acting_steps(sample.spec.window, schedule)
    last = max(index for index, act in enumerate(acting) if act)
    builds = momentum_scale > 0
    used = [(k, w) for k, w in zip(sample.concepts, sample.weights, strict=True) if w != 0 and scale != 0]
    return _Member(
        sample=sample.index,
        rows=tuple(Row(sample.index, k) for k, _ in used),
        weights=tuple(w for _, w in used),
        scale=scale,
        threshold=float(options["threshold"]),
        momentum_scale=momentum_scale,
        momentum_beta=float(options["momentum_beta"]),
        acting=acting,
        needed=tuple(bool(used) and (act or (builds and index < last)) for index, act in enumerate(acting)),
    )


def _make_plan(
    members: Sequence[_Member], active: Sequence[int], acting: Sequence[bool], cond: Tensor
) -> _Plan:
    chosen = [members[index] for index in active]
    row_samples = [row.sample for member in chosen for row in member.rows]
    row_members = [position for position, member in enumerate(chosen) for _ in member.rows]
    per_row = [chosen[position] for position in row_members]
    samples = [member.sample for member in chosen]

    def column(values: Sequence[float]) -> Tensor | float:
        if len(set(values)) == 1:
            return values[0]
        return torch.tensor(values, dtype=torch.float32, device=cond.device).view(-1, *(1,) * (cond.ndim - 1))

    def index(values: Sequence[int], everything: int) -> Tensor | None:
        return None if list(values) == list(range(everything)) else torch.tensor(values, device=cond.device)

    mask = None if all(acting) else column([float(act) for act in acting])
    return _Plan(
        count=len(chosen),
        members=index(active, len(members)),
        samples=index(samples, cond.shape[0]),
        row_samples=index(row_samples, cond.shape[0]),
        row_members=index(row_members, len(chosen)),
        applied=tuple(member.sample for member, act in zip(chosen, acting, strict=True) if act),
        mask=mask if isinstance(mask, Tensor) else None,
        scale=column([member.scale for member in per_row]),
        threshold=column([member.threshold for member in per_row]),
        weight=column([weight for member in chosen for weight in member.weights]),
        momentum_scale=column([member.momentum_scale for member in chosen]),
        momentum_beta=column([member.momentum_beta for member in chosen]),
    )


def _take(tensor: Tensor, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor.index_select(0, index)


def _sum_per_member(terms: Tensor, plan: _Plan) -> Tensor:
    """Add up the terms of each sample's concepts: [R, C, H, W] to [M, C, H, W]."""
    if plan.row_members is None:
        return terms
    return terms.new_zeros((plan.count, *terms.shape[1:])).index_add(0, plan.row_members, terms)
