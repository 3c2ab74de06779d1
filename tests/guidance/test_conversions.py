"""Clean latents, noise and reverse steps, against what diffusers' schedulers make of the same predictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from sldcore.errors import GuidanceError
from sldcore.families.cascade import StableCascadePrior
from sldcore.families.noise import schedule_of
from sldcore.guidance.conversions import (
    common,
    denoised,
    guidance_scale,
    level,
    noise_of,
    prediction_of,
    reverse,
    tells_denoised,
    with_common,
)
from sldcore.testing import schedule
from sldcore.types import Step

STEPS = 7
SHAPE = (2, 4, 3, 3)
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
DISCRETE: dict[str, tuple[type, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "euler, karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "lms": (LMSDiscreteScheduler, {}),
    "dpm++ 2m": (DPMSolverMultistepScheduler, {}),
    "dpm++ 2m, karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),
}


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def discrete(solver: str, prediction: str) -> Any:
    cls, own = DISCRETE[solver]
    return cls(**BETAS, **own, prediction_type=prediction)


def flow(**options: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, **options)


SOLVERS = [
    *(
        pytest.param(lambda s=solver, p=kind: discrete(s, p), id=f"{solver}, {kind}")
        for solver in DISCRETE
        for kind in PREDICTIONS
    ),
    *(
        pytest.param(lambda p=kind: EDMEulerScheduler(prediction_type=p), id=f"edm, {kind}")
        for kind in ("epsilon", "v_prediction")
    ),
    pytest.param(flow, id="flow"),
    pytest.param(lambda: flow(invert_sigmas=True), id="flow, inverted"),
]


def walk(scheduler: Any, sign: int = 1) -> Iterator[tuple[Step, Tensor, Tensor, Tensor]]:
    """A run with arbitrary predictions: step, latents as the denoiser gets them, prediction, and the solver's x0."""
    scheduler.set_timesteps(STEPS)
    told = schedule_of(scheduler, STEPS, sign)
    latents = noise(0) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for index, timestep in enumerate(scheduler.timesteps):
        scales = hasattr(scheduler, "scale_model_input")
        given = scheduler.scale_model_input(latents, timestep) if scales else latents
        prediction = noise(index + 1)
        clean, latents = solver_step(scheduler, index, timestep, prediction, latents)
        yield told.step(index), given, sign * prediction, clean


def solver_step(
    scheduler: Any, index: int, timestep: Tensor, prediction: Tensor, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """The solver's own x0 and its next latents."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigmas = scheduler.sigmas.double()
        end = (
            1.0 if scheduler.config.invert_sigmas else 0.0
        )  # where one Euler step to no noise at all would go
        return (
            latents + (end - sigmas[index]) * prediction,
            latents + (sigmas[index + 1] - sigmas[index]) * prediction,
        )
    if isinstance(scheduler, DPMSolverMultistepScheduler | UniPCMultistepScheduler):
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        clean = scheduler.convert_model_output(prediction, sample=latents)
        return clean, scheduler.step(prediction, timestep, latents).prev_sample
    out = scheduler.step(prediction, timestep, latents)
    return out.pred_original_sample, out.prev_sample


@pytest.mark.parametrize("make", SOLVERS)
@pytest.mark.parametrize("sign", [1, -1])
def test_clean_latents_are_those_of_the_solver(make: Any, sign: int) -> None:
    for step, latents, prediction, clean in walk(make(), sign):
        scale = 1 + clean.abs()
        difference = (denoised(step, latents, prediction) - clean).abs() / scale
        assert difference.max() < 2e-4, step


@pytest.mark.parametrize("make", SOLVERS)
def test_a_prediction_comes_back_from_its_clean_latents(make: Any) -> None:
    for step, latents, prediction, clean in walk(make()):
        x0 = denoised(step, latents, prediction)
        torch.testing.assert_close(prediction_of(step, latents, x0), prediction, rtol=1e-6, atol=1e-6)
        moved = denoised(step, latents, prediction_of(step, latents, clean + 1))
        torch.testing.assert_close(moved, clean + 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", SOLVERS)
def test_latents_are_made_of_their_clean_latents_and_their_noise(make: Any) -> None:
    for step, latents, prediction, _ in walk(make()):
        alpha, sigma, norm = level(step)
        assert alpha**2 + sigma**2 == pytest.approx(1)
        mixed = alpha * denoised(step, latents, prediction) + sigma * noise_of(step, latents, prediction)
        torch.testing.assert_close(norm * mixed, latents, rtol=1e-6, atol=1e-6)


def test_the_noise_of_an_epsilon_prediction_is_the_prediction() -> None:
    for step, latents, prediction, _ in walk(discrete("euler", "epsilon")):
        torch.testing.assert_close(noise_of(step, latents, prediction), prediction, rtol=0, atol=2e-3)


def test_the_noise_of_a_flow_is_where_its_velocity_comes_from() -> None:
    for step, latents, prediction, clean in walk(flow()):
        torch.testing.assert_close(noise_of(step, latents, prediction), clean + prediction)


@pytest.mark.parametrize("solver", ["ddim", "euler", "dpm++ 2m"])
def test_latents_of_a_variance_preserving_model_keep_their_size(solver: str) -> None:
    for step, *_ in walk(discrete(solver, "epsilon")):
        assert level(step).norm == pytest.approx(1, abs=2e-3)
        assert level(step).sigma == pytest.approx(step.noise_level, abs=2e-3)


def test_the_level_of_edm_is_that_of_its_sigma() -> None:
    scheduler = EDMEulerScheduler()
    for step, *_ in walk(scheduler):
        sigma = float(scheduler.sigmas[step.index])
        assert level(step).sigma == pytest.approx(sigma / (1 + sigma**2) ** 0.5)


# --- where nothing is known ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "told"), [("epsilon", False), ("v_prediction", True)])
def test_at_pure_noise_only_v_tells_the_clean_latents(prediction: str, told: bool) -> None:
    options: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler(**BETAS, **options, prediction_type=prediction)
    scheduler.set_timesteps(STEPS)
    first = schedule_of(scheduler, STEPS).step(0)
    assert tells_denoised(first) is told
    if told:
        assert torch.equal(denoised(first, noise(0), noise(1)), -noise(1))
    else:
        assert first.denoised_factors == (0.0, 0.0)
        for ask in (noise_of, prediction_of):
            with pytest.raises(GuidanceError, match="step 0"):
                ask(first, noise(0), noise(1))
        with pytest.raises(GuidanceError, match=r"step 0 the prediction does not tell"):
            level(first)


def test_latents_without_noise_have_none_to_tell() -> None:
    scheduler = DDIMScheduler(beta_start=0.0, beta_end=0.02)
    scheduler.set_timesteps(10)
    last = schedule_of(scheduler, 10).step(9)
    assert not tells_denoised(last) and level(last) == (1.0, 0.0, 1.0)
    assert torch.equal(denoised(last, noise(0), noise(1)), noise(0))
    with pytest.raises(GuidanceError, match="no noise"):
        noise_of(last, noise(0), noise(1))


def test_the_guidance_scale_is_the_pipelines_where_it_tells_it() -> None:
    assert guidance_scale(3.0, 7.5) == 3.0
    assert guidance_scale(None, 7.5) == 7.5


# --- families --------------------------------------------------------------------------------------------------


def test_cascades_prior_tells_the_clean_embedding() -> None:
    scheduler = DDPMWuerstchenScheduler()
    scheduler.set_timesteps(STEPS)
    told = StableCascadePrior().noise_schedule(scheduler, STEPS)
    assert len(told.denoised_factors) == STEPS
    for index, timestep in enumerate(scheduler.timesteps[:-1]):
        clean, eps = noise(1), noise(2)
        mixed = scheduler.add_noise(clean, eps, timestep.repeat(2))
        torch.testing.assert_close(denoised(told.step(index), mixed, eps), clean, rtol=1e-4, atol=1e-4)


# --- reverse steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_reverse_step_is_that_of_ddpm(prediction: str) -> None:
    scheduler = DDPMScheduler(
        **BETAS, prediction_type=prediction, clip_sample=False, timestep_spacing="leading", steps_offset=1
    )
    scheduler.set_timesteps(20)
    told = schedule_of(scheduler, 20)
    for index in range(19):
        latents, predicted = noise(1), noise(2)
        generator = torch.Generator().manual_seed(3)
        after = scheduler.step(predicted, scheduler.timesteps[index], latents, generator).prev_sample
        drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        back = reverse(told.step(index), told.step(index + 1))
        assert back is not None
        clean = denoised(told.step(index), latents, predicted)
        expected = back.latents * latents + back.denoised * clean + back.variance**0.5 * drawn
        torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-3)


def test_a_reverse_step_depends_on_the_signal_to_noise_ratios_alone() -> None:
    epsilon, flowing = (
        [Step(i, 2, 0.0, s, f, d) for i, (s, f, d) in enumerate(rows)]
        for rows in (
            [(0.8, 1.0, (1 / 0.6, -0.8 / 0.6)), (0.6, 1.0, (1 / 0.8, -0.6 / 0.8))],
            [
                (4 / 7, 3 / 7, (1.0, -4 / 7)),
                (3 / 7, 4 / 7, (1.0, -3 / 7)),
            ],  # 1 - sigma to sigma as 0.6 to 0.8
        )
    )
    one, two = reverse(*epsilon), reverse(*flowing)
    assert one is not None and two is not None
    assert one == pytest.approx(two)
    assert one.variance == pytest.approx((1 - 0.75**2) * 0.36 / 0.64)


def test_there_is_no_reverse_step_where_noise_does_not_fall_or_clean_latents_are_not_told() -> None:
    told = schedule(4)
    assert reverse(told.step(0), told.step(1)) is None  # epsilon at pure noise
    assert reverse(told.step(1), told.step(1)) is None
    assert reverse(told.step(2), told.step(1)) is None
    assert reverse(told.step(1), told.step(2)) is not None
    assert reverse(Step(0, 1, 0.0, 0.9), told.step(3)) is None  # a schedule that does not tell


# --- channels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latents", "prediction", "shared"),
    [
        ((2, 9, 4, 4), (2, 4, 4, 4), (2, 4, 4, 4)),  # inpainting
        ((2, 4, 4, 4), (2, 8, 4, 4), (2, 4, 4, 4)),  # a model that learns the variance
        ((2, 3, 32, 4, 4), (2, 3, 16, 4, 4), (2, 3, 16, 4, 4)),  # frames first
        ((2, 64, 384), (2, 64, 64), (2, 64, 64)),  # packed
    ],
)
def test_channels_that_only_one_has_are_left_out(
    latents: tuple[int, ...], prediction: tuple[int, ...], shared: tuple[int, ...]
) -> None:
    step = Step(0, 1, 0.0, 0.8, 0.6, (0.6, -0.8))
    given, predicted = noise(1, latents), noise(2, prediction)
    clean = denoised(step, given, predicted)
    corner = tuple(slice(size) for size in shared)
    torch.testing.assert_close(clean, 0.6 * given[corner] - 0.8 * predicted[corner])
    torch.testing.assert_close(prediction_of(step, given, clean), predicted[corner])
    changed = with_common(predicted, torch.ones(shared, dtype=torch.float64))
    assert torch.equal(changed[corner], predicted[corner] + 1)
    assert (changed - predicted).sum() == pytest.approx(clean.numel())


@pytest.mark.parametrize("latents", [(2, 9, 8, 4), (1, 4, 4, 4), (2, 4, 4)])
def test_other_differences_of_shape_are_refused_with_both_shapes(latents: tuple[int, ...]) -> None:
    with pytest.raises(GuidanceError, match=r"latents \[.*\] and predictions \[2, 4, 4, 4\]"):
        common(noise(1, latents), noise(2, (2, 4, 4, 4)))
