"""SEGA: Semantic Guidance, Brack et al., NeurIPS 2023, arXiv 2301.12247, section 3, steering away from every concept.

With e_u, e_p and e_k the unconditional, the prompt's and concept k's predictions of one sample, step t:

    psi_k   = -(e_k - e_u)                                       the negative direction
    mu_k    = s_e where |psi_k| >= eta(|psi_k|), else 0          eta: quantile lambda over positions, per channel
    gamma_k = mu_k * psi_k
    gamma   = sum_k g_k * gamma_k + s_m * nu
    nu'     = beta_m * nu + (1 - beta_m) * gamma                 built during warm-up too
    e       = e_u + s_g * (e_p - e_u) + gamma                    outside the guidance scale s_g

A concept is warm from the first step at which it acts and has cooled down after the last one; then its gamma_k is zero.
As in diffusers' implementation, the momentum is applied when all concepts are warm. Until then the warm ones act without
it, with weights that sum to one. With strength a in 0..1 of the policy's window and a_k of the concept's, the applied
gamma is multiplied by a and gamma_k by a_k.

The pipeline computes e_u + s_g * (e_p' - e_u) from what is handed back, so e_p' = e_p + gamma / s_g. Differences are
epsilon-equivalent, so that the momentum means the same at every step of models that predict v or flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sld_guidance_sega import __version__
from sld_guidance_sega.plan import Plan, plan
from sldcore.guidance.base import GuidanceRun, GuidedSample
from sldcore.types import Guided, Predictions, Row, Schedule, Step

SMALLEST_FACTOR: Final = 1e-4
"""Below this epsilon factor (zero terminal SNR) predictions say nothing about the noise and guidance does not act."""


def edit_term(psi: Tensor, scale: Tensor, quantile: Tensor) -> Tensor:
    """gamma_k = mu_k * psi_k for rows [R, C, ...]; ``scale`` is s_e [R, 1, ...] and ``quantile`` lambda [R]."""
    magnitude = psi.abs()
    ordered = magnitude.flatten(2).sort(dim=2).values  # [R, C, N]
    last = ordered.shape[2] - 1
    rank = (quantile * last).view(-1, 1, 1).expand(-1, psi.shape[1], 1)  # [R, C, 1]
    below = rank.long()
    above = (below + 1).clamp(max=last)
    eta = torch.lerp(ordered.gather(2, below), ordered.gather(2, above), rank - below)
    eta = eta.view(*psi.shape[:2], *(1,) * (psi.ndim - 2))
    # Written so that NaN is kept, not taken for something below the threshold: a spoilt prediction must be noticed.
    return (scale * psi).masked_fill(magnitude < eta, 0.0)


class SEGA:
    """The method; its options are :class:`sld_guidance_sega.SEGAOptions`."""

    name = "sega"
    version = __version__

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        """Begin a run.

        Raises:
            GuidanceError: the number of thresholds is not the number of a sample's concept rows.
        """
        return SEGARun([plan(sample, schedule) for sample in samples])


class SEGARun:
    """State of one run: the momentum nu [M, C, ...] of its M samples, at least float32."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._plans = tuple(plans)
        self._numbers = {row: number for number, row in enumerate(row for plan in plans for row in plan.rows)}
        self._factors: _Factors | None = None
        self._chosen: dict[tuple[Row, ...], Tensor] = {}
        self._nu: Tensor | None = None

    def rows(self, step: Step) -> tuple[Row, ...]:
        """Rows of the concepts that act at this step, or that build momentum for a later one."""
        return tuple(
            row
            for plan in self._plans
            for row, needed in zip(plan.rows, plan.needed[step.index], strict=True)
            if needed
        )

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """The equations above, for all samples at once."""
        cond = predictions.cond
        if self._factors is None:
            self._factors = _Factors.of(self._plans, cond)
        factors, rows = self._factors, self._chosen_rows(predictions)
        precision = torch.promote_types(cond.dtype, torch.float32)
        to_epsilon = step.epsilon_factor if abs(step.epsilon_factor) > SMALLEST_FACTOR else 0.0
        e_u = predictions.uncond.to(precision)[factors.row_samples[rows]]
        psi = (e_u - predictions.concepts.to(precision)) * to_epsilon  # [R, C, ...]
        gamma = edit_term(psi, factors.scales[rows], factors.quantiles[rows])
        applied = factors.applied[step.index, rows] * gamma
        momentum = self._momentum(factors.built[step.index, rows] * gamma, factors, rows)
        edit = factors.per_member(applied, rows) + factors.carried[step.index] * momentum  # [M, C, ...]
        terms = -applied / factors.guidance_scales[factors.row_members[rows]]
        acting = tuple(plan.sample for plan in self._plans if plan.acts(step.index))
        if not acting or to_epsilon == 0.0:
            return Guided(cond, terms, ())
        safe = cond.to(precision)[factors.samples] + edit / (factors.guidance_scales * to_epsilon)
        return Guided(cond.index_copy(0, factors.samples, safe.to(cond.dtype)), terms, acting)

    def _momentum(self, built: Tensor, factors: _Factors, rows: Tensor) -> Tensor:
        """s_m * nu [M, C, ...]; nu itself goes on to the next step."""
        if self._nu is None:
            self._nu = built.new_zeros((len(self._plans), *built.shape[1:]))
        momentum = factors.momentum_scales * self._nu
        gamma = factors.per_member(built, rows) + momentum
        self._nu = factors.momentum_betas * self._nu + (1 - factors.momentum_betas) * gamma
        return momentum

    def _chosen_rows(self, predictions: Predictions) -> Tensor:
        """The numbers of the step's rows among all rows of the run, [R]; made once per set of rows."""
        if predictions.rows not in self._chosen:
            numbers = [self._numbers[row] for row in predictions.rows]
            self._chosen[predictions.rows] = torch.tensor(numbers, device=predictions.cond.device)
        return self._chosen[predictions.rows]


@dataclass(frozen=True, slots=True)
class _Factors:
    """The plans of M samples with N concept rows in all as tensors on the device, made once per run."""

    samples: Tensor  # [M], their places in the batch
    row_samples: Tensor  # [N]
    row_members: Tensor  # [N]
    scales: Tensor  # [N, 1, ...]
    quantiles: Tensor  # [N]
    built: Tensor  # [T, N, 1, ...]
    applied: Tensor  # [T, N, 1, ...]
    carried: Tensor  # [T, M, 1, ...]
    momentum_scales: Tensor  # [M, 1, ...]
    momentum_betas: Tensor  # [M, 1, ...]
    guidance_scales: Tensor  # [M, 1, ...]

    @classmethod
    def of(cls, plans: Sequence[Plan], cond: Tensor) -> _Factors:
        """The tensors for predictions like ``cond`` [B, C, ...]."""
        precision = torch.promote_types(cond.dtype, torch.float32)
        steps = range(len(plans[0].carried))

        def numbers(values: Sequence[object]) -> Tensor:
            tensor = torch.tensor(values, dtype=precision, device=cond.device)
            return tensor.view(*tensor.shape, *(1,) * (cond.ndim - 1))

        def indices(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=cond.device)

        members = [member for member, plan in enumerate(plans) for _ in plan.rows]
        return cls(
            samples=indices([plan.sample for plan in plans]),
            row_samples=indices([plans[member].sample for member in members]),
            row_members=indices(members),
            scales=numbers([scale for plan in plans for scale in plan.scales]),
            quantiles=numbers([quantile for plan in plans for quantile in plan.quantiles]).flatten(),
            built=numbers([[each for plan in plans for each in plan.built[step]] for step in steps]),
            applied=numbers([[each for plan in plans for each in plan.applied[step]] for step in steps]),
            carried=numbers([[plan.carried[step] for plan in plans] for step in steps]),
            momentum_scales=numbers([plan.momentum_scale for plan in plans]),
            momentum_betas=numbers([plan.momentum_beta for plan in plans]),
            guidance_scales=numbers([plan.guidance_scale for plan in plans]),
        )

    def per_member(self, terms: Tensor, rows: Tensor) -> Tensor:
        """Add up the terms of each sample's concepts: [R, C, ...] to [M, C, ...]."""
        sums = terms.new_zeros((len(self.samples), *terms.shape[1:]))
        return sums.index_add(0, self.row_members[rows], terms)
