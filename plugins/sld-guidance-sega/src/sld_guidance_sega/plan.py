"""When each concept is warm, and with which factors its term builds momentum and is applied: numbers, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sld_guidance_sega import SEGAOptions, quantiles
from sldcore.errors import GuidanceError
from sldcore.guidance.base import GuidedSample
from sldcore.types import Row, Schedule

Factors = tuple[tuple[float, ...], ...]
"""A factor for each of T steps and K concept rows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One sample with its K concept rows, compiled to numbers for each of T steps.

    gamma_k counts ``built[t][k]`` times in the momentum and ``applied[t][k]`` times in what is applied; the momentum itself
    ``carried[t]`` times. ``needed[t][k]`` says whether row k has to be evaluated.
    """

    sample: int
    rows: tuple[Row, ...]
    scales: tuple[float, ...]
    quantiles: tuple[float, ...]
    momentum_scale: float
    momentum_beta: float
    guidance_scale: float
    needed: tuple[tuple[bool, ...], ...]
    built: Factors
    applied: Factors
    carried: tuple[float, ...]

    def acts(self, step: int) -> bool:
        """True if the sample's prediction changes at this step."""
        return self.carried[step] > 0 or any(self.applied[step])


@dataclass(frozen=True, slots=True)
class _Concept:
    """One concept of a sample: its weight g_k, its strength a_k at each step, and the steps at which it is warm."""

    weight: float
    strengths: tuple[float, ...]
    warm: int  # the first step at which it acts
    cold: int  # the step after the last one

    def built(self, step: int) -> float:
        """g_k times how much of gamma_k goes into the momentum: all of it during warm-up, nothing after cool-down."""
        if step >= self.cold:
            return 0.0
        return self.weight * (1.0 if step < self.warm else self.strengths[step])


def guidance_scale(schedule: Schedule, options: SEGAOptions) -> float:
    """The pipeline's guidance scale s_g: the run's own if it knows it, else what the option says."""
    return options.pipeline_guidance_scale if schedule.guidance_scale is None else schedule.guidance_scale


def plan(sample: GuidedSample, schedule: Schedule) -> Plan:
    """Compile one sample.

    Raises:
        GuidanceError: the number of thresholds is not the number of the sample's concept rows.
        ValueError: the sample says how guidance acts for another number of steps than the schedule's.
    """
    if len(sample.acting) != len(schedule):
        raise ValueError(f"sample {sample.index} acts at {len(sample.acting)} of {len(schedule)} steps")
    options = SEGAOptions.model_validate(dict(sample.spec.options))
    count, steps = len(sample.concepts), range(len(schedule))
    concepts = [_concept(sample, k) for k in range(count)]
    thresholds = _per_row(quantiles(options.threshold), count)
    strengths = sample.strengths or (1.0,) * count
    # A concept without weight or strength, or that never acts, costs nothing and delays nobody's warm-up.
    used = [k for k, each in enumerate(concepts) if each.weight * strengths[k] > 0 and each.cold > 0]
    chosen = [concepts[k] for k in used]
    return Plan(
        sample=sample.index,
        rows=tuple(Row(sample.index, sample.concepts[k]) for k in used),
        scales=tuple(options.scale * strengths[k] for k in used),
        quantiles=tuple(thresholds[k] for k in used),
        momentum_scale=options.momentum_scale,
        momentum_beta=options.momentum_beta,
        guidance_scale=guidance_scale(schedule, options),
        needed=tuple(
            tuple(
                step < each.cold
                and (options.momentum_scale > 0 or sample.acting[step] * each.strengths[step] > 0)
                for each in chosen
            )
            for step in steps
        ),
        built=tuple(tuple(each.built(step) for each in chosen) for step in steps),
        applied=tuple(_applied(chosen, sample.acting[step], step) for step in steps),
        carried=tuple(
            sample.acting[step]
            if options.momentum_scale > 0 and chosen and all(step >= each.warm for each in chosen)
            else 0.0
            for step in steps
        ),
    )


def _concept(sample: GuidedSample, k: int) -> _Concept:
    strengths = sample.concept_acting[k] if sample.concept_acting else (1.0,) * len(sample.acting)
    acts = [step for step, a in enumerate(sample.acting) if a * strengths[step] > 0]
    warm, cold = (acts[0], acts[-1] + 1) if acts else (len(sample.acting), 0)
    return _Concept(sample.weights[k], strengths, warm, cold)


def _applied(concepts: Sequence[_Concept], acting: float, step: int) -> tuple[float, ...]:
    """The factors a * a_k * g_k of warm concepts, else 0; while others are not, the weights of the warm ones sum to one."""
    warm = [each.warm <= step < each.cold for each in concepts]
    total = sum(each.weight for each, acts in zip(concepts, warm, strict=True) if acts)
    norm = 1.0 if all(step >= each.warm for each in concepts) else total
    return tuple(
        acting * each.built(step) / norm if acts else 0.0 for each, acts in zip(concepts, warm, strict=True)
    )


def _per_row(thresholds: tuple[float, ...], count: int) -> tuple[float, ...]:
    if len(thresholds) == 1:
        return thresholds * count
    if len(thresholds) != count:
        raise GuidanceError(
            f"method 'sega' has {len(thresholds)} thresholds for {count} concept rows; give one for all, or one for each "
            f"row in the policy's order (a concept that is longer than the text encoder's window has several rows)"
        )
    return thresholds
