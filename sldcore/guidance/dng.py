"""Dynamic Negative Guidance, Koulischer et al., ICLR 2025, arXiv 2410.14398: negative guidance by how likely a concept is.

With e_u, e_p and e_k the unconditional, the prompt's and concept k's predictions of one sample, s the pipeline's guidance
scale, and p_k the probability that the picture shows concept k, which starts at ``prior``:

    lambda_k = lambda_0 * p_k / (1 - p_k)
    e        = e_u + s (e_p - e_u) - sum_k lambda_k (e_k - e_u)
    p_k'     = p_k * exp((tau (|x' - mu_u|^2 - |x' - mu_k|^2) + delta) / (2 sigma^2)),    within 1e-6 to p_max

x' are the latents that the solver made of this step, known when the denoiser is called again. mu_u and mu_k are the means
of a reverse step with e_u and e_k, and sigma^2 its variance: |.|^2 is a sum over all elements, and the bracket without tau
and delta is the log likelihood ratio of the step under concept and no concept. The pipeline computes e_u + s (e_p' - e_u)
from what is handed back, so e_p' = e_p - sum_k (lambda_k / s) (e_k - e_u).

Where this deviates from the paper:

- The paper samples by DDPM, where x' is mu + sigma z. Other solvers have other means and mostly no z. In their place stands
  what DDPM would do between this noise level and that of the next call: mu_u, mu_k and sigma^2 are those of
  q(x_s | x_t, x0) with x0 by each prediction (:func:`sldcore.guidance.conversions.reverse`), and the ratio says under
  which of them the solver's x' is likelier. For DDPM it is the paper's. A deterministic step has sigma_s (1 - alpha_ts
  sigma_s / sigma_t) eps in place of sigma z, noise of the prediction itself, which the ratio cannot tell from chance; tau
  < 1 keeps the sum of such errors small, as it does in the paper.
- Latents are made variance-preserving first, so that sigma^2 and delta mean the same for rectified flow and EDM.
- A step that does not lower the noise (second calls of PNDM and Heun), or that says nothing of x0, leaves p as it is.
- The concept's weight, strength and windows multiply lambda_k. p is followed before a window opens too, from
  ``builds_from`` on, which costs the concept row; after the last step at which the concept acts nothing is evaluated.
- The base is the unconditional prediction whatever the prompt is, as in the paper's derivation.
- All of the latents count in the likelihoods. What a pipeline sets itself (outside an inpainting mask, pictures that an
  editing model is given as further tokens) adds chance to p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import Final

import torch
from torch import Tensor

from sldcore import __version__
from sldcore.errors import GuidanceError
from sldcore.guidance.base import GuidanceRun, GuidedSample
from sldcore.guidance.conversions import Reverse, common, guidance_scale, level, reverse
from sldcore.guidance.kinds import DNGOptions
from sldcore.types import Guided, Predictions, Row, Schedule, Step

SMALLEST_FACTOR: Final = 1e-4
"""Below this epsilon factor (zero terminal SNR) predictions say nothing about the noise and guidance does not act."""

SMALLEST_POSTERIOR: Final = 1e-6
"""p never falls below this, so that it can rise again."""


class DNG:
    """The method; its options are :class:`sldcore.guidance.kinds.DNGOptions`."""

    name = "dng"
    version = __version__

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        """Begin a run.

        Raises:
            GuidanceError: the schedule does not tell how predictions become clean latents.
            ValueError: a sample says how guidance acts for another number of steps than the schedule's.
        """
        if not any(b for _, b in schedule.denoised_factors):
            raise GuidanceError(
                "method 'dng' has to know the clean latents that a prediction means, and this pipeline's schedule does not "
                "tell them; use a method that does not need them, such as sld"
            )
        return DNGRun([row for sample in samples for row in _followed(sample, schedule)], schedule)


@dataclass(frozen=True, slots=True)
class _Followed:
    """One concept row of a run: its options, lambda_0 / s at each step, and the steps at which it is evaluated."""

    row: Row
    options: DNGOptions
    scales: tuple[float, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the next call is held against: for rows [R], mu_u and mu_k - mu_u [R, C, ...], and the variance."""

    step: int
    rows: Tensor
    mean: Tensor
    toward: Tensor
    variance: float


class DNGRun:
    """State of one run: log p of its N concept rows."""

    def __init__(self, followed: Sequence[_Followed], schedule: Schedule) -> None:
        self._followed = tuple(followed)
        self._numbers = {each.row: number for number, each in enumerate(self._followed)}
        self._schedule = schedule
        self._device: _OnDevice | None = None
        self._log_p: Tensor | None = None
        self._expected: _Expected | None = None

    def rows(self, step: Step) -> tuple[Row, ...]:
        """Rows of the concepts that act at this step or at a later one."""
        return tuple(each.row for each in self._followed if each.first <= step.index <= each.last)

    def posterior(self) -> dict[Row, float]:
        """The probability p of each concept row; waits for the device."""
        if self._log_p is None:
            return {each.row: each.options.prior for each in self._followed}
        return dict(zip(self._numbers, self._log_p.exp().tolist(), strict=True))

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """The equations above, for all rows at once."""
        cond = predictions.cond
        if self._device is None:
            self._device = _OnDevice.of(self._followed, cond)
            self._log_p = self._device.log_prior
        known, precision = self._device, torch.promote_types(cond.dtype, torch.float32)
        rows = known.numbers(predictions.rows, self._numbers)
        e_u = predictions.uncond.to(precision).index_select(0, known.samples[rows])
        toward = predictions.concepts.to(precision) - e_u  # [R, C, ...]
        log_p = self._follow(step, predictions, known)
        self._expect(step, predictions, e_u, toward, rows)
        factor = step.epsilon_factor if abs(step.epsilon_factor) > SMALLEST_FACTOR else 0.0
        odds = log_p.exp() / -torch.expm1(log_p)  # [N]
        gamma = _column(known.scales[step.index] * odds, toward)[rows] * toward
        applied = tuple(dict.fromkeys(each.row.sample for each in self._acting(step)))
        if not applied or factor == 0.0:
            return Guided(cond, torch.zeros_like(gamma), ())
        total = torch.zeros_like(cond, dtype=precision).index_add(0, known.samples[rows], gamma)
        samples = known.numbers(applied)
        safe = (cond.to(precision) - total).index_select(0, samples).to(cond.dtype)
        return Guided(cond.index_copy(0, samples, safe), gamma * factor, applied)

    def _acting(self, step: Step) -> Iterator[_Followed]:
        return (each for each in self._followed if each.scales[step.index] != 0)

    def _follow(self, step: Step, predictions: Predictions, known: _OnDevice) -> Tensor:
        """The state log p [N] after what the solver made of the step before."""
        expected, self._expected = self._expected, None
        if self._log_p is None or expected is None or expected.step != step.index:
            return known.log_prior if self._log_p is None else self._log_p
        rows = expected.rows
        latents = _latents(step, predictions).index_select(0, known.samples[rows])
        away = (
            latents - expected.mean
        )  # x' - mu_u; |x' - mu_u|^2 - |x' - mu_k|^2 is |d| (2 x - |d|) along d = mu_k - mu_u
        nearer = (expected.toward * (2 * away - expected.toward)).flatten(1).sum(1)
        change = (known.temperatures[rows] * nearer + known.offsets[rows]) / (2 * expected.variance)
        moved = self._log_p.index_add(0, rows, change)
        self._log_p = torch.minimum(moved, known.log_max).clamp(min=log(SMALLEST_POSTERIOR))
        return self._log_p

    def _expect(
        self, step: Step, predictions: Predictions, e_u: Tensor, toward: Tensor, rows: Tensor
    ) -> None:
        """Keep the reverse means of this step for the next call, where there is one that p is followed at."""
        next_up = step.index + 1
        if (
            self._device is None
            or next_up >= len(self._schedule)
            or not self.rows(self._schedule.step(next_up))
        ):
            return
        back: Reverse | None = reverse(step, self._schedule.step(next_up))
        if back is None:
            return
        latents = _latents(step, predictions).index_select(
            0, self._device.samples[rows]
        )  # x_t, variance-preserving
        a, b = step.denoised_factors
        _, e_u = common(latents, e_u)
        _, toward = common(latents, toward)
        x0 = a * level(step).norm * latents + b * e_u
        mean = back.latents * latents + back.denoised * x0
        self._expected = _Expected(next_up, rows, mean, back.denoised * b * toward, back.variance)


def _latents(step: Step, predictions: Predictions) -> Tensor:
    """The latents of the whole batch with the prediction's channels, variance-preserving."""
    if predictions.latents is None:
        raise GuidanceError("method 'dng' has to see the latents, and this denoising loop does not show them")
    latents, _ = common(predictions.latents, predictions.cond)
    precision = torch.promote_types(latents.dtype, torch.float32)
    return latents.to(precision) / level(step).norm


def _followed(sample: GuidedSample, schedule: Schedule) -> Iterator[_Followed]:
    if len(sample.acting) != len(schedule):
        raise ValueError(f"sample {sample.index} acts at {len(sample.acting)} of {len(schedule)} steps")
    options = DNGOptions.model_validate(dict(sample.spec.options))
    scale = options.scale / guidance_scale(schedule.guidance_scale, options.pipeline_guidance_scale)
    amounts = list(zip(*(sample.amounts(step) for step in range(len(schedule))), strict=True))
    for concept, amount in zip(sample.concepts, amounts, strict=True):
        scales = tuple(scale * each for each in amount)
        acting = [step for step, each in enumerate(scales) if each]
        if acting:
            first = min(sample.builds_from, acting[0])
            yield _Followed(Row(sample.index, concept), options, scales, first, acting[-1])


def _column(values: Tensor, like: Tensor) -> Tensor:
    """[N] as [N, 1, ...]."""
    return values.view(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """The parameters of N followed rows as tensors, made once per run; indices are made once per set of rows."""

    samples: Tensor  # [N], their places in the batch
    scales: Tensor  # [T, N]
    temperatures: Tensor  # [N]
    offsets: Tensor  # [N]
    log_prior: Tensor  # [N]
    log_max: Tensor  # [N]
    made: dict[tuple[object, ...], Tensor]

    @classmethod
    def of(cls, followed: Sequence[_Followed], cond: Tensor) -> _OnDevice:
        """The tensors for predictions like ``cond``."""
        precision = torch.promote_types(cond.dtype, torch.float32)
        options = [each.options for each in followed]

        def numbers(values: Sequence[object]) -> Tensor:
            return torch.tensor(values, dtype=precision, device=cond.device)

        return cls(
            samples=torch.tensor([each.row.sample for each in followed], device=cond.device),
            scales=numbers(list(zip(*(each.scales for each in followed), strict=True))),
            temperatures=numbers([each.temperature for each in options]),
            offsets=numbers([each.offset for each in options]),
            log_prior=numbers([log(min(each.prior, each.largest_posterior)) for each in options]),
            log_max=numbers([log(each.largest_posterior) for each in options]),
            made={},
        )

    def numbers(self, wanted: Sequence[object], places: dict[Row, int] | None = None) -> Tensor:
        """An index of rows by their ``places``, or of samples as they are."""
        key = tuple(wanted)
        if key not in self.made:
            values = list(key) if places is None else [places[row] for row in key]  # type: ignore[index]
            self.made[key] = torch.tensor(values, dtype=torch.long, device=self.samples.device)
        return self.made[key]
