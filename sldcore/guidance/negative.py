"""The concept as negative prompt, alone and together with SLD.

With e_u, e_p, e_S the unconditional, prompt and concept predictions of one sample and w the pipeline's guidance scale:

    negative       e_S + w (e_p - e_S)             the concept's text stands in the unconditional row; no row is added
    sld+negative   n + w (e_p - a gamma - n)       n = (1 - o) e_u + o e_S; gamma is SLD's, with the true e_u

where a and o say how far the windows of the guidance and of the concept are open: o is 1 in an open window without a
ramp, so that n = e_S. Outside the windows the pipeline's own unconditional prediction stays.

A text is there or not: ``negative`` has no half strength, and puts one text in place of one text. Composing diffusion
models with negated concepts is Liu et al., ECCV 2022, arXiv 2206.01714; what stands in the unconditional row is the negative
prompt as it is commonly used. In ``sld+negative`` the weight and the strength of a concept are those of its SLD term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from sldcore import __version__
from sldcore.errors import GuidanceError
from sldcore.guidance.base import GuidanceRun, GuidedSample, OwnText
from sldcore.guidance.sld import Member, SLDRun, column, compiled, take
from sldcore.types import Guided, OwnRow, Predictions, Row, Schedule, Step

UNCOND: Final = "uncond"


class Negative:
    """The method ``negative``; no options."""

    name = "negative"
    version = __version__

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        """Begin a run.

        Raises:
            GuidanceError: a sample has several concept rows, a weight or strength other than 1, or a window that is half open
                at some step.
        """
        return NegativeRun(samples, len(schedule))


class NegativeRun:
    """For each step, the texts that stand in unconditional rows."""

    def __init__(self, samples: Sequence[GuidedSample], steps: int) -> None:
        for sample in samples:
            _check_one_concept(sample, Negative.name)
            _check_whole(sample)
        self._texts: list[dict[OwnRow, OwnText]] = [
            {
                OwnRow(sample.index, UNCOND): concept
                for sample in samples
                for concept, amount in zip(sample.concepts, sample.amounts(step), strict=True)
                if amount
            }
            for step in range(steps)
        ]

    def own_texts(self, step: Step) -> Mapping[OwnRow, OwnText]:
        """The concept of each sample whose window is open."""
        return self._texts[step.index]

    def rows(self, step: Step) -> tuple[Row, ...]:
        """None: the concept is evaluated in the place of another text."""
        return ()

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """Nothing is left to do; the pipeline's own guidance does it."""
        return Guided(predictions.cond, torch.zeros_like(predictions.concepts), ())


class NegativeSLD:
    """The method ``sld+negative``; options of ``sld``."""

    name = "sld+negative"
    version = __version__

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        """Begin a run.

        Raises:
            GuidanceError: a sample has several concept rows.
            ValueError: a sample says how guidance acts for another number of steps than the schedule's.
        """
        return NegativeSLDRun(samples, schedule)


class NegativeSLDRun(SLDRun):
    """State of one run: SLD's, and how much of each sample's concept stands for its unconditional prediction."""

    def __init__(self, samples: Sequence[GuidedSample], schedule: Schedule) -> None:
        for sample in samples:
            _check_one_concept(sample, NegativeSLD.name)
        super().__init__(samples, schedule)
        opened = {sample.index: _opened(sample) for sample in samples}
        self._opened = [
            tuple(opened[concept.row.sample][step] for concept in needed)
            for step, needed in enumerate(self._needed)
        ]
        self._shares: list[Tensor | float] = []

    @staticmethod
    def _member(sample: GuidedSample, schedule: Schedule) -> Member:
        return compiled(sample, schedule, without_term=True)

    def _plan(self, cond: Tensor) -> None:
        super()._plan(cond)
        made = {opened: column(opened, cond) for opened in set(self._opened)}
        self._shares = [made[opened] for opened in self._opened]

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """SLD's safe conditional prediction, and the concept's as the unconditional one; one row for each sample."""
        guided = super().combine(step, predictions)
        plan, share = self._plans[step.index], self._shares[step.index]
        if not plan.applied:
            return guided
        own = take(predictions.uncond, plan.samples)
        precision = torch.promote_types(own.dtype, torch.float32)
        share = share.to(precision) if isinstance(share, Tensor) else share
        mixed = torch.lerp(own.to(precision), predictions.concepts.to(precision), share).to(own.dtype)
        uncond = mixed if plan.samples is None else predictions.uncond.index_copy(0, plan.samples, mixed)
        return replace(guided, applied=plan.applied, uncond=uncond)


def _opened(sample: GuidedSample) -> tuple[float, ...]:
    """How far the windows of the sample and of its concept are open at each step."""
    if not sample.concept_acting:
        return sample.acting
    return tuple(act * opening for act, opening in zip(sample.acting, sample.concept_acting[0], strict=True))


def _check_one_concept(sample: GuidedSample, method: str) -> None:
    if len(sample.concepts) > 1:
        raise GuidanceError(
            f"method '{method}' puts one text in place of the negative prompt, and sample {sample.index} has "
            f"{len(sample.concepts)} concept rows (a concept too long for the text encoder counts as several), which would need as "
            f"many unconditional rows; write the concepts as one text that fits, or use method 'sld'"
        )


def _check_whole(sample: GuidedSample) -> None:
    scales = {"weight": sample.weights, "strength": sample.strengths}
    for name, values in scales.items():
        if other := [value for value in values if value != 1]:
            raise GuidanceError(
                f"method 'negative' replaces a text, which has no {name}, and a concept of sample {sample.index} has {name} "
                f"{other[0]:g}; leave it at 1, or use method 'sld' or 'sld+negative'"
            )
    for step, opened in enumerate(_opened(sample)):
        if 0 < opened < 1:
            raise GuidanceError(
                f"method 'negative' replaces a text wholly or not at all, and the window of sample {sample.index} opens it by "
                f"{opened:g} at denoiser call {step}; use a window without a ramp, or method 'sld+negative'"
            )
