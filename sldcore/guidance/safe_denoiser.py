"""Safe Denoiser, Kim et al., NeurIPS 2025, arXiv 2502.08011: clean latents kept away from those of reference pictures.

With x_t the latents, x0 = E_data[x0 | x_t] what the pipeline's own guided prediction e = e_u + s (e_p - e_u) says of the
clean latents, and y_n the references, in noise levels that are high enough, for one sample:

    form paper      w_n  = q(x_t | y_n) / sum_m q(x_t | y_m)       q(x_t | y) is normal with mean alpha_t y, variance sigma_t^2
                    x0'  = x0 + eta * beta(x_t) * (x0 - sum_n w_n y_n)
                    beta = min(M / threshold, 1)
    form released   x0'  = x0 - eta * sum_n k_n y_n / M            where M > threshold, else x0' = x0

    k_n = exp(-|x0 - y_n| / (2 bandwidth^2)), M = sum_n k_n        a distance, not its square

x0' is folded back into a prediction, whatever the model predicts: with x0 = a x_t + b e, e' = e + (x0' - x0) / b. The
pipeline computes e_u + s (e_p' - e_u) from what is handed back, so e_p' = e_p + (x0' - x0) / (s b). No row is evaluated,
and any solver goes on as ever. The window's strength and the weight and strength of the policy's concept scale x0' - x0;
of several concepts the strongest counts, since a concept is only a name for what the references show.

Where this deviates from the paper: its beta is p(unsafe | x_t) / p(safe | x_t), for which nobody has the constants. M
stands in its place, as the gate does in the authors' code; here it rises with M and ends at 1, so that nothing jumps.
Where form ``released`` deviates from the released code: the latents are not noised again at the same timestep, and the
solver steps with the new prediction, not with the old one. As there, its references are of length 1 in each position
(over channels) and the threshold is a gate; those of form ``paper`` are as they are. Noise levels are those of
variance-preserving latents, to which flow and EDM are brought first. M grows with the number of references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sldcore import __version__
from sldcore.errors import GuidanceError
from sldcore.guidance.base import GuidanceRun, GuidedSample
from sldcore.guidance.conversions import (
    common,
    denoised,
    guidance_scale,
    level,
    tells_denoised,
    with_common,
)
from sldcore.guidance.kinds import SafeDenoiserOptions
from sldcore.guidance.references import read_references
from sldcore.types import Guided, Predictions, Row, Schedule, Step

ELEMENTS: Final = 1 << 24
"""Numbers that distances are computed of at once: 64 MiB in float32."""


class SafeDenoiser:
    """The method; its options are :class:`sldcore.guidance.kinds.SafeDenoiserOptions`."""

    name = "safe-denoiser"
    version = __version__

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        """Begin a run.

        Raises:
            GuidanceError: the references cannot be used, or there is no step at which a sample would be kept away from them.
            ValueError: a sample says how guidance acts for another number of steps than the schedule's.
        """
        members = [_member(sample, schedule) for sample in samples]
        return SafeDenoiserRun([member for member in members if any(member.amounts)])


@dataclass(frozen=True, slots=True)
class _Member:
    """One sample: its options, its references on the CPU, the pipeline's s, and how much of x0' - x0 each step takes."""

    sample: int
    options: SafeDenoiserOptions
    references: Tensor
    guidance_scale: float
    amounts: tuple[float, ...]


class SafeDenoiserRun:
    """State of one run: the references on the device, once for each file and form."""

    def __init__(self, members: Sequence[_Member]) -> None:
        self._members = tuple(members)
        self._on_device: dict[tuple[int, str], Tensor] = {}

    def rows(self, step: Step) -> tuple[Row, ...]:
        """None: references stand in place of the concept."""
        return ()

    def acts(self, step: Step) -> bool:
        """True inside the window, at high noise levels."""
        return any(member.amounts[step.index] for member in self._members)

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """The equations above, sample by sample: each has its own options and references."""
        if predictions.latents is None:
            raise GuidanceError(
                "method 'safe-denoiser' has to see the latents, and this denoising loop does not show them"
            )
        acting = [member for member in self._members if member.amounts[step.index]]
        safe = predictions.cond.clone()
        precision = torch.promote_types(safe.dtype, torch.float32)
        for member in acting:
            one = slice(member.sample, member.sample + 1)
            e_u, e_p, latents = (
                each[one].to(precision)
                for each in (predictions.uncond, predictions.cond, predictions.latents)
            )
            guided = e_u + member.guidance_scale * (e_p - e_u)
            change = self._change(member, step, latents, guided)  # x0' - x0
            back = member.guidance_scale * step.denoised_factors[1]
            safe[one] = with_common(e_p, change / back).to(safe.dtype)
        terms = torch.zeros_like(predictions.concepts, dtype=precision)
        return Guided(safe, terms, tuple(member.sample for member in acting))

    def _change(self, member: _Member, step: Step, latents: Tensor, guided: Tensor) -> Tensor:
        x0, at = denoised(step, latents, guided), level(step)
        references = self._references(member, x0)
        scale = member.options.scale * member.amounts[step.index]
        bandwidth, threshold = member.options.bandwidth, member.options.threshold
        if member.options.form == "released":
            return released(x0, references, scale, bandwidth, threshold)
        x_t = common(latents, guided)[0] / at.norm
        return paper(x_t, x0, references, at.alpha, at.sigma, scale, bandwidth, threshold)

    def _references(self, member: _Member, x0: Tensor) -> Tensor:
        """The member's references where x0 [1, C, ...] is, as precise as in their file."""
        references = member.references
        if references.shape[1:] != x0.shape[1:]:
            raise GuidanceError(
                f"the references {member.options.references} are latents {list(references.shape[1:])}, and this run's are "
                f"{list(x0.shape[1:])}; make references with this model, in the size of the pictures that it generates"
            )
        key = id(references), member.options.form
        if key not in self._on_device:
            placed = references.to(x0.device)
            self._on_device[key] = of_unit_length(placed) if member.options.form == "released" else placed
        return self._on_device[key]


def paper(
    x_t: Tensor,
    x0: Tensor,
    references: Tensor,
    alpha: float,
    sigma: float,
    scale: float,
    bandwidth: float,
    threshold: float,
) -> Tensor:
    """x0' - x0 of form ``paper`` for one sample [1, C, ...] and references [N, C, ...]; ``scale`` is eta."""
    log_q = -_squares(x_t, references, alpha) / (2 * sigma**2)
    unsafe = _mean(references, log_q.softmax(0), x0)
    beta = (_log_mass(_squares(x0, references), bandwidth).exp() / threshold).clamp(max=1.0)
    return scale * beta * (x0 - unsafe)


def released(x0: Tensor, references: Tensor, scale: float, bandwidth: float, threshold: float) -> Tensor:
    """x0' - x0 of form ``released`` for one sample [1, C, ...] and references [N, C, ...] of unit length; ``scale`` is eta."""
    squares = _squares(x0, references)
    log_mass = _log_mass(squares, bandwidth)
    weights = (_log_kernel(squares, bandwidth) - log_mass).exp()
    # Written so that NaN is kept, not taken for something below the threshold: a spoilt prediction must be noticed.
    shut = log_mass.exp() <= threshold
    return (-scale * _mean(references, weights, x0)).masked_fill(shut, 0.0)


def _log_kernel(squares: Tensor, bandwidth: float) -> Tensor:
    return -squares.sqrt() / (2 * bandwidth**2)


def _log_mass(squares: Tensor, bandwidth: float) -> Tensor:
    return _log_kernel(squares, bandwidth).logsumexp(0)


def _squares(point: Tensor, references: Tensor, factor: float = 1.0) -> Tensor:
    """|point - factor * y_n|^2, [N]. Differences, not products: those of near pictures would drown in rounding."""
    parts = _parts(references, point)
    return torch.cat([(factor * part - point).flatten(1).square().sum(1) for part in parts])


def _mean(references: Tensor, weights: Tensor, like: Tensor) -> Tensor:
    """sum_n w_n y_n, [1, C, ...]."""
    total, start = torch.zeros_like(like), 0
    for part in _parts(references, like):
        own = weights[start : start + len(part)].view(-1, *(1,) * (part.ndim - 1))
        total = total + (own * part).sum(0, keepdim=True)
        start += len(part)
    return total


def _parts(references: Tensor, like: Tensor) -> Iterator[Tensor]:
    """The references in parts of at most ``ELEMENTS`` numbers, or one picture, as precise as ``like``."""
    size = max(1, ELEMENTS // like.numel())
    for start in range(0, len(references), size):
        yield references[start : start + size].to(like.dtype)


def of_unit_length(references: Tensor) -> Tensor:
    """The references [N, C, ...] with length 1 over channels in each position."""
    precision = torch.promote_types(references.dtype, torch.float32)
    like = torch.zeros_like(references[:1], dtype=precision)
    parts = (torch.nn.functional.normalize(part, dim=1) for part in _parts(references, like))
    return torch.cat([part.to(references.dtype) for part in parts])


def _member(sample: GuidedSample, schedule: Schedule) -> _Member:
    if len(sample.acting) != len(schedule):
        raise ValueError(f"sample {sample.index} acts at {len(sample.acting)} of {len(schedule)} steps")
    options = SafeDenoiserOptions.model_validate(dict(sample.spec.options))
    wanted = [max(sample.amounts(step), default=0.0) for step in range(len(schedule))]
    noisy = [_is_noisy(schedule.step(step), options.noise_floor) for step in range(len(schedule))]
    amounts = tuple(amount if high else 0.0 for amount, high in zip(wanted, noisy, strict=True))
    if any(wanted) and not any(amounts):
        raise GuidanceError(_never(schedule, options.noise_floor))
    return _Member(
        sample=sample.index,
        options=options,
        references=read_references(options.references, options.sha256),
        guidance_scale=guidance_scale(schedule.guidance_scale, options.pipeline_guidance_scale),
        amounts=amounts if options.scale else (0.0,) * len(schedule),
    )


def _is_noisy(step: Step, floor: float) -> bool:
    """True where x0 can be told and changed, and the latents have at least this much noise."""
    return tells_denoised(step) and step.noise_level > 0 and level(step).sigma >= floor


def _never(schedule: Schedule, floor: float) -> str:
    if not any(b for _, b in schedule.denoised_factors):
        return (
            "method 'safe-denoiser' has to know the clean latents that a prediction means, and this pipeline's schedule does "
            "not tell them; use a method that does not need them, such as sld"
        )
    steps = [schedule.step(index) for index in range(len(schedule))]
    highest = max(level(step).sigma for step in steps if tells_denoised(step))
    return (
        f"method 'safe-denoiser' acts at noise levels of {floor:g} and more, and there is none at which the policy's window is "
        f"open among the run's {len(schedule)} denoiser calls (highest: {highest:.4f}); lower noise_floor, widen the window or "
        f"use more steps"
    )
