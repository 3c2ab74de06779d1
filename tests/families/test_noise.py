"""Noise levels and epsilon factors of diffusers' real schedulers."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)

from sldcore.errors import GuidanceError
from sldcore.families.noise import discrete_schedule

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def prepared(kind: Any, steps: int, **options: Any) -> Any:
    scheduler = kind(**STABLE_DIFFUSION, **options)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(
    ("scheduler", "calls"),
    [
        (prepared(DDIMScheduler, 50, steps_offset=1), 50),
        (prepared(PNDMScheduler, 50, skip_prk_steps=True, steps_offset=1), 51),
        (prepared(EulerDiscreteScheduler, 50), 50),
        (prepared(DPMSolverMultistepScheduler, 50, use_karras_sigmas=True), 50),
        (prepared(LMSDiscreteScheduler, 50), 50),
        (prepared(HeunDiscreteScheduler, 50), 99),
    ],
    ids=["ddim", "pndm", "euler", "dpm++2m-karras", "lms", "heun"],
)
def test_noise_falls_from_nearly_one_to_nearly_nothing(scheduler: Any, calls: int) -> None:
    schedule = discrete_schedule(scheduler, len(scheduler.timesteps))
    assert len(schedule) == calls
    assert schedule.noise_levels[0] > 0.99
    assert 0 < schedule.noise_levels[-1] < 0.25
    assert all(one >= two for one, two in zip(schedule.noise_levels, schedule.noise_levels[1:], strict=False))
    assert set(schedule.epsilon_factors) == {1.0}


def test_levels_are_exact_at_training_timesteps() -> None:
    scheduler = prepared(DDIMScheduler, 20, steps_offset=1)
    schedule = discrete_schedule(scheduler, 20)
    for timestep, level in zip(schedule.timesteps, schedule.noise_levels, strict=True):
        assert level == pytest.approx(sqrt(1 - float(scheduler.alphas_cumprod[int(timestep)])), rel=1e-6)


def test_levels_of_karras_sigmas_agree_with_the_sigmas() -> None:
    scheduler = prepared(EulerDiscreteScheduler, 20, use_karras_sigmas=True)
    schedule = discrete_schedule(scheduler, 20)
    for sigma, level in zip(scheduler.sigmas[:-1].tolist(), schedule.noise_levels, strict=True):
        assert level == pytest.approx(sigma / sqrt(1 + sigma**2), abs=2e-3)


def test_a_run_that_starts_late_has_the_last_steps() -> None:
    scheduler = prepared(DDIMScheduler, 20, steps_offset=1)
    whole, tail = discrete_schedule(scheduler, 20), discrete_schedule(scheduler, 8)
    assert tail.timesteps == whole.timesteps[-8:]


def test_v_prediction_has_alpha_as_its_factor() -> None:
    schedule = discrete_schedule(prepared(DDIMScheduler, 10, prediction_type="v_prediction"), 10)
    for level, factor in zip(schedule.noise_levels, schedule.epsilon_factors, strict=True):
        assert level**2 + factor**2 == pytest.approx(1)


def test_zero_terminal_snr_has_factor_zero_at_its_first_step() -> None:
    scheduler = prepared(
        DDIMScheduler,
        10,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    schedule = discrete_schedule(scheduler, 10)
    assert schedule.epsilon_factors[0] == pytest.approx(0, abs=1e-4)
    assert schedule.noise_levels[0] == pytest.approx(1)


def test_a_scheduler_without_a_table_is_refused_by_name() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(GuidanceError, match=r"FlowMatchEulerDiscreteScheduler has no table.*DDIM"):
        discrete_schedule(scheduler, 5)


def test_an_unknown_prediction_type_is_refused() -> None:
    scheduler = prepared(DDIMScheduler, 5)
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(GuidanceError, match="'score' is unknown; supported are epsilon"):
        discrete_schedule(scheduler, 5)
