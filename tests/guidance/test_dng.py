"""Dynamic Negative Guidance against the paper's equations, written once more as plain loops in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, sqrt
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from numpy.typing import NDArray
from pydantic import ValidationError

from sldcore.errors import GuidanceError
from sldcore.guidance.base import GuidedSample
from sldcore.guidance.dng import DNG, DNGRun
from sldcore.guidance.kinds import KINDS, DNGOptions
from sldcore.policy import GuidanceSpec, Options, SafetyPolicy
from sldcore.policy_parts import ConceptUse
from sldcore.session import guard
from sldcore.testing import GuidanceContract
from sldcore.types import Guided, Predictions, Row, Schedule, Step

Array = NDArray[np.float64]
SHAPE = (2, 3, 3)
STEPS = 6
SIGMAS = (1.0, 0.95, 0.8, 0.8, 0.5, 0.2)  # pure noise first, and a step that does not lower the noise


class TestContract(GuidanceContract):
    (contribution,) = (kind for kind in KINDS if kind.name == "dng")


# --- the oracle ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Parameters of one sample; ``amounts`` is how much of each concept's term is taken, at each step."""

    amounts: tuple[tuple[float, ...], ...] = ((1.0,) * STEPS,)
    options: dict[str, Any] = field(default_factory=dict)
    builds_from: int = 0

    @property
    def dng(self) -> DNGOptions:
        return DNGOptions.model_validate({"offset": 0.2, "temperature": 0.3, "prior": 0.1, **self.options})


@dataclass(frozen=True)
class Case:
    """A run: ``latents``, ``uncond``, ``cond`` [T, B, ...], ``concepts`` [T, B, K, ...]."""

    samples: tuple[Sample | None, ...]
    latents: Array
    uncond: Array
    cond: Array
    concepts: Array
    kind: str = "epsilon"
    scale: float | None = 5.0
    sigmas: tuple[float, ...] = SIGMAS

    def signal(self, step: int) -> float:
        sigma = self.sigmas[step]
        return 1 - sigma if self.kind == "flow" else sqrt(1 - sigma**2)

    def clean(self, step: int, latents: float, prediction: float) -> float:
        """x0 of one number."""
        a, s = self.signal(step), self.sigmas[step]
        if self.kind == "epsilon":
            return (latents - s * prediction) / a
        return a * latents - s * prediction if self.kind == "v" else latents - s * prediction

    @property
    def schedule(self) -> Schedule:
        signals = [self.signal(step) for step in range(STEPS)]
        factors, denoised = [], []
        for a, s in zip(signals, self.sigmas, strict=True):
            unknown = self.kind == "epsilon" and a == 0
            b = 0.0 if unknown else -s / a if self.kind == "epsilon" else -s
            denoised.append((0.0 if unknown else self.clean_of_latents(a), b))
            factors.append(1.0 if self.kind == "epsilon" else a)
        return Schedule(tuple(range(STEPS, 0, -1)), self.sigmas, tuple(factors), self.scale, tuple(denoised))

    def clean_of_latents(self, a: float) -> float:
        return {"epsilon": 1 / a if a else 0.0, "v": a, "flow": 1.0}[self.kind]


def oracle(case: Case) -> tuple[Array, Array, Array]:
    """Guided predictions [T, B, ...], terms and probabilities [T, B, K, ...], number by number."""
    guided, terms = case.cond.copy(), np.zeros_like(case.concepts)
    probabilities = np.full(case.concepts.shape[:3], np.nan)
    for b, sample in enumerate(case.samples):
        if sample is None:
            continue
        for k, amounts in enumerate(sample.amounts):
            acting = [t for t in range(STEPS) if amounts[t]]
            if not acting:
                continue
            p, options = min(sample.dng.prior, sample.dng.largest_posterior), sample.dng
            for t in range(min(sample.builds_from, acting[0]), acting[-1] + 1):
                if t > min(sample.builds_from, acting[0]):
                    grown = p * exp(log_change(case, t, b, k, options))
                    p = max(min(grown, options.largest_posterior), 1e-6)
                probabilities[t, b, k] = p
                rate = amounts[t] * options.scale * p / (1 - p) / (case.scale or 7.5)
                factor = case.schedule.epsilon_factors[t]
                if factor == 0:
                    continue
                for at in np.ndindex(SHAPE):
                    term = rate * (case.concepts[t, b, k][at] - case.uncond[t, b][at])
                    guided[t, b][at] -= term
                    terms[t, b, k][at] = factor * term
    return guided, terms, probabilities


def log_change(case: Case, t: int, b: int, k: int, options: DNGOptions) -> float:
    """What the step from t - 1 to t says: DDPM's reverse means, both distances, and its variance."""
    before, size_0, size_1 = t - 1, *(sqrt(case.signal(i) ** 2 + case.sigmas[i] ** 2) for i in (t - 1, t))
    a0, s0 = case.signal(before) / size_0, case.sigmas[before] / size_0
    a1, s1 = case.signal(t) / size_1, case.sigmas[t] / size_1
    if s1 >= s0 or (case.kind == "epsilon" and a0 == 0):
        return 0.0
    ratio = a0 / a1
    variance = (1 - ratio**2) * s1**2 / s0**2
    far_u = far_k = 0.0
    for at in np.ndindex(SHAPE):
        x, after = case.latents[before, b][at], case.latents[t, b][at] / size_1
        clean_u = case.clean(before, x, case.uncond[before, b][at])
        clean_k = case.clean(before, x, case.concepts[before, b, k][at])
        mean_u, mean_k = (
            (ratio * s1**2 * x / size_0 + a1 * (1 - ratio**2) * clean) / s0**2 for clean in (clean_u, clean_k)
        )
        far_u += (after - mean_u) ** 2
        far_k += (after - mean_k) ** 2
    return (options.temperature * (far_u - far_k) + options.offset) / (2 * variance)


# --- running the method ----------------------------------------------------------------------------------------


def members(case: Case) -> list[GuidedSample]:
    return [
        GuidedSample(
            index=b,
            spec=GuidanceSpec(method="dng", options=Options(sample.dng.model_dump())),
            concepts=tuple(range(len(sample.amounts))),
            weights=(1.0,) * len(sample.amounts),
            acting=(1.0,) * STEPS,
            concept_acting=sample.amounts,
            builds_from=sample.builds_from,
        )
        for b, sample in enumerate(case.samples)
        if sample is not None
    ]


def run(case: Case, dtype: torch.dtype = torch.float64) -> list[tuple[tuple[Row, ...], Guided | None, Any]]:
    """Rows, result and probabilities of each step."""
    state = DNG().start(members(case), case.schedule)
    assert isinstance(state, DNGRun)
    found = []
    for t in range(STEPS):
        step = case.schedule.step(t)
        rows = state.rows(step)
        result = state.combine(step, predictions(case, t, rows, dtype)) if rows else None
        found.append((rows, result, state.posterior()))
    return found


def predictions(case: Case, t: int, rows: Sequence[Row], dtype: torch.dtype) -> Predictions:
    concepts = np.array([case.concepts[t, row.sample, row.concept] for row in rows])
    uncond, cond, latents, concepts = (
        torch.tensor(part, dtype=dtype) for part in (case.uncond[t], case.cond[t], case.latents[t], concepts)
    )
    return Predictions(uncond, cond, concepts, tuple(rows), latents)


def random_case(*samples: Sample | None, seed: int = 0, size: float = 0.3, **fields: Any) -> Case:
    """Small differences, so that probabilities move and do not all end at their limits."""
    rng = np.random.default_rng(seed)
    concepts = max(len(sample.amounts) for sample in samples if sample is not None)

    def draw(*sizes: int) -> Array:
        return size * rng.normal(size=(STEPS, len(samples), *sizes, *SHAPE))

    return Case(samples, draw(), draw(), draw(), draw(concepts), **fields)


RISING = (0.0, 0.0, 0.5, 1.0, 1.0, 0.0)
MIXED = (
    Sample(),
    None,
    Sample(amounts=((1.0,) * STEPS, RISING), options={"scale": 3.0, "temperature": 0.05}),
    Sample(amounts=(RISING,), options={"prior": 0.4, "offset": -0.1}, builds_from=1),
    Sample(amounts=((0.0,) * STEPS, (0.5,) * STEPS), options={"largest_posterior": 0.12}),
)


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_follows_the_equations_number_by_number(kind: str, seed: int) -> None:
    case = random_case(*MIXED, seed=seed, kind=kind)
    guided, terms, probabilities = oracle(case)
    moved = probabilities[~np.isnan(probabilities)]
    assert len(set(moved.round(6))) > 8  # the case says something
    for t, (rows, result, posterior) in enumerate(run(case)):
        expected = {
            (b, k) for b, k in np.ndindex(probabilities.shape[1:]) if not np.isnan(probabilities[t, b, k])
        }
        assert set(rows) == expected
        if result is None:
            continue
        np.testing.assert_allclose(result.cond.numpy(), guided[t], rtol=1e-9, atol=1e-12)
        wanted = np.array([terms[t, row.sample, row.concept] for row in rows])
        np.testing.assert_allclose(result.terms.numpy(), wanted, rtol=1e-9, atol=1e-12)
        for row in rows:
            assert posterior[row] == pytest.approx(probabilities[t, row.sample, row.concept], rel=1e-9)


def test_a_picture_that_moves_as_the_concept_says_is_guided_more_and_one_that_does_not_less() -> None:
    """Latents that are the reverse mean of the concept's prediction at each step, and of the unconditional one's."""
    toward, away = (posterior_after(follow_concept) for follow_concept in (True, False))
    assert toward > 0.1 > away


def posterior_after(follow_concept: bool) -> float:
    case = random_case(Sample(options={"offset": 0.0}), seed=4, sigmas=(0.95, 0.9, 0.8, 0.7, 0.5, 0.2))
    latents = case.latents.copy()
    for t in range(1, STEPS):
        predicted = case.concepts[t - 1, :, 0] if follow_concept else case.uncond[t - 1]
        (a0, s0), (a1, s1) = ((case.signal(i), case.sigmas[i]) for i in (t - 1, t))
        clean = (latents[t - 1] - s0 * predicted) / a0
        ratio = a0 / a1
        latents[t] = (ratio * s1**2 * latents[t - 1] + a1 * (1 - ratio**2) * clean) / s0**2
    moved = Case(case.samples, latents, case.uncond, case.cond, case.concepts, sigmas=case.sigmas)
    *_, (_, _, posterior) = run(moved)
    return float(posterior[Row(0, 0)])


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
def test_a_sample_alone_is_as_in_a_batch(kind: str) -> None:
    together = random_case(*MIXED, seed=7, kind=kind)
    results = run(together, torch.float32)
    for b, sample in enumerate(MIXED):
        if sample is None:
            continue
        parts = (
            part[:, b : b + 1]
            for part in (together.latents, together.uncond, together.cond, together.concepts)
        )
        alone = run(Case((sample,), *parts, kind=kind), torch.float32)
        for (_, one, _), (_, many, _) in zip(alone, results, strict=True):
            if one is not None and many is not None:
                torch.testing.assert_close(one.cond[0], many.cond[b], rtol=1e-5, atol=1e-6)


def test_samples_that_do_not_act_are_left_alone_bit_by_bit() -> None:
    case = random_case(*MIXED, seed=8)
    for t, (_, result, _) in enumerate(run(case)):
        if result is None:
            continue
        acting = {b for b, s in enumerate(MIXED) if s is not None and any(each[t] for each in s.amounts)}
        assert set(result.applied) == acting
        for b in set(range(len(MIXED))) - acting:
            assert np.array_equal(result.cond[b].numpy(), case.cond[t, b])


def test_the_pipelines_guidance_gives_the_papers_combination() -> None:
    case = random_case(Sample(), seed=9)
    rate = 12 * 0.1 / 0.9
    _, result, _ = run(case)[0]
    assert result is not None
    made = case.uncond[0] + 5.0 * (result.cond.numpy() - case.uncond[0])
    plain = case.uncond[0] + 5.0 * (case.cond[0] - case.uncond[0])
    np.testing.assert_allclose(made, plain - rate * (case.concepts[0, :, 0] - case.uncond[0]))


def test_the_option_stands_in_for_a_guidance_scale_that_the_pipeline_does_not_tell() -> None:
    sample = Sample(options={"pipeline_guidance_scale": 2.0})
    told, untold = (run(random_case(sample, seed=10, scale=scale)) for scale in (2.0, None))
    for (_, one, _), (_, two, _) in zip(told, untold, strict=True):
        assert one is not None and two is not None and torch.equal(one.cond, two.cond)


def test_the_latents_of_an_inpainting_model_are_its_first_channels() -> None:
    case = random_case(*MIXED, seed=11)
    state = DNG().start(members(case), case.schedule)
    for t, (rows, result, _) in enumerate(run(case)):
        if not rows or result is None:
            continue
        given = predictions(case, t, rows, torch.float64)
        assert given.latents is not None
        more = torch.cat([given.latents, torch.full_like(given.latents, 9.0)], dim=1)
        wide = Predictions(given.uncond, given.cond, given.concepts, given.rows, more)
        assert torch.equal(state.combine(case.schedule.step(t), wide).cond, result.cond)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_huge_and_contradictory_steps_in_half_precision_stay_finite(dtype: torch.dtype) -> None:
    case = random_case(Sample(), seed=12, size=50.0)
    for _, result, posterior in run(case, dtype):
        assert result is not None
        assert result.cond.dtype == dtype
        assert result.cond.isfinite().all() and result.terms.isfinite().all()
        assert 1e-6 * (1 - 1e-5) <= posterior[Row(0, 0)] <= 0.8 * (1 + 1e-5)


# --- errors ----------------------------------------------------------------------------------------------------


def test_a_schedule_that_does_not_tell_clean_latents_is_refused_before_the_first_step() -> None:
    case = random_case(Sample())
    told = case.schedule
    untold = Schedule(told.timesteps, told.noise_levels, told.epsilon_factors)
    with pytest.raises(GuidanceError, match="'dng' has to know the clean latents"):
        DNG().start(members(case), untold)


def test_latents_that_are_not_shown_are_missed() -> None:
    case = random_case(Sample(), kind="v")
    state = DNG().start(members(case), case.schedule)
    given = predictions(case, 0, (Row(0, 0),), torch.float32)
    hidden = Predictions(given.uncond, given.cond, given.concepts, given.rows)
    with pytest.raises(GuidanceError, match="has to see the latents"):
        state.combine(case.schedule.step(0), hidden)


def test_a_sample_that_acts_at_another_number_of_steps_is_refused() -> None:
    case = random_case(Sample())
    (sample,) = members(case)
    short = GuidedSample(0, sample.spec, (0,), (1.0,), (1.0,) * 4)
    with pytest.raises(ValueError, match="acts at 4 of 6 steps"):
        DNG().start([short], case.schedule)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": 0.0}, "greater than or equal to 0.000001"),
        ({"prior": 1.0}, "less than 1"),
        ({"temperature": -1}, "greater than or equal to 0"),
        ({"lambda": 5}, "unknown key 'lambda'"),
        ({"scale": "5"}, "expected a number"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DNGOptions.model_validate(options)


# --- in a pipeline ---------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """One denoiser call: what the method was given and gave, and its probabilities after it."""

    given: Predictions
    guided: Guided
    posterior: dict[Row, float]


@pytest.mark.parametrize("solver", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_in_a_pipeline_the_solver_gets_the_papers_combination_of_what_it_made(
    pipe: Any, solver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Seen] = []
    combine = DNGRun.combine

    def watched(run: DNGRun, step: Step, given: Predictions) -> Guided:
        guided = combine(run, step, given)
        seen.append(Seen(given, guided, run.posterior()))
        return guided

    monkeypatch.setattr(DNGRun, "combine", watched)
    pipe.scheduler = solver.from_config(pipe.scheduler.config)
    solved = []
    solve = pipe.scheduler.step

    def solving(made: torch.Tensor, timestep: Any, latents: torch.Tensor, **more: Any) -> Any:
        sigma = pipe.scheduler.sigmas[len(solved)] if solver is EulerDiscreteScheduler else 0.0
        solved.append((made, latents / (1 + sigma**2) ** 0.5))
        return solve(made, timestep, latents, **more)

    monkeypatch.setattr(pipe.scheduler, "step", solving)
    policy = SafetyPolicy(
        name="test", guidance=GuidanceSpec(method="dng"), concepts=(ConceptUse(text="a knight"),)
    )
    with guard(pipe, policy) as session:
        seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
        call = {"num_inference_steps": 8, "guidance_scale": 4.0, "output_type": "latent"}
        pipe(["a red knight", "a cat"], generator=seeds, **call)
    assert session.trace.rows - session.trace.plain_rows == 8 * 2
    assert len({each.posterior[Row(0, 0)] for each in seen}) > 4
    for (given, _, posterior), (made, latents) in zip(seen, solved, strict=True):
        assert given.latents is not None
        torch.testing.assert_close(given.latents, latents)
        for b in range(2):
            p, away = posterior[Row(b, 0)], given.concepts[b] - given.uncond[b]
            plain = given.uncond[b] + 4.0 * (given.cond[b] - given.uncond[b])
            torch.testing.assert_close(made[b], plain - 12.0 * p / (1 - p) * away, rtol=1e-3, atol=1e-4)
