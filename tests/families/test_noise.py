"""Noise levels and epsilon factors read off diffusers' schedulers."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
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
from sldcore.types import Schedule

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# name -> class, options, denoiser calls for 50 steps
SOLVERS: dict[str, tuple[type, dict[str, Any], int]] = {
    "ddim": (DDIMScheduler, {"steps_offset": 1}, 50),
    "pndm": (PNDMScheduler, {"steps_offset": 1, "skip_prk_steps": True}, 51),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}, 50),
    "euler, karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}, 50),
    "dpm++ 2m, karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, 50),
    "lms": (LMSDiscreteScheduler, {}, 50),
    "heun": (HeunDiscreteScheduler, {}, 99),
}


def made(solver: str, steps: int = 50, **options: Any) -> tuple[Any, Schedule]:
    """A scheduler set to some steps, and its schedule over all its calls."""
    cls, own, _ = SOLVERS[solver]
    scheduler = cls(**{**BETAS, **own, **options})
    scheduler.set_timesteps(steps)
    return scheduler, discrete_schedule(scheduler, len(scheduler.timesteps))


def alpha_bar() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Stable Diffusion's table, from its definition."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_there_is_one_entry_per_denoiser_call(solver: str) -> None:
    scheduler, schedule = made(solver)
    assert len(schedule) == len(scheduler.timesteps) == SOLVERS[solver][2]
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())


@pytest.mark.parametrize("solver", SOLVERS)
def test_noise_falls_from_nearly_pure_to_nearly_none(solver: str) -> None:
    levels = made(solver)[1].noise_levels
    assert all(0 < level < 1 for level in levels)
    assert levels[0] > 0.98 and levels[-1] < 0.25
    assert all(later <= earlier for earlier, later in pairwise(levels))
    assert len(set(levels)) >= 49


@pytest.mark.parametrize("solver", ["ddim", "pndm", "dpm++ 2m, karras"])
def test_at_training_timesteps_the_level_is_that_of_the_table(solver: str) -> None:
    schedule = made(solver)[1]
    assert all(timestep == int(timestep) for timestep in schedule.timesteps)
    expected = np.sqrt(1 - alpha_bar())[np.array(schedule.timesteps, dtype=int)]
    np.testing.assert_allclose(schedule.noise_levels, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "lms", "euler, karras"])
def test_between_training_timesteps_the_level_is_that_of_the_solvers_sigma(solver: str) -> None:
    """Sigma of variance-exploding solvers is s / a; their conversion to timesteps interpolates log sigma instead."""
    scheduler, schedule = made(solver, steps=37)
    assert any(timestep != int(timestep) for timestep in schedule.timesteps)
    sigmas = scheduler.sigmas[:-1].double().numpy()
    expected = sigmas / np.sqrt(1 + sigmas**2)
    np.testing.assert_allclose(schedule.noise_levels, expected, rtol=0, atol=1e-3)


def test_a_fractional_timestep_lies_between_its_neighbours() -> None:
    scheduler, _ = made("ddim")
    scheduler.timesteps = torch.tensor([501.0, 500.75, 500.25, 500.0])
    levels = discrete_schedule(scheduler, 4).noise_levels
    assert levels[0] > levels[1] > levels[2] > levels[3]


def test_the_second_call_of_pndm_and_of_each_heun_step_is_at_its_own_timestep() -> None:
    pndm, heun = made("pndm", steps=10)[1], made("heun", steps=10)[1]
    assert pndm.noise_levels[1] == pndm.noise_levels[2]
    assert len(pndm) == 11 and len(heun) == 19
    assert heun.noise_levels[1::2] == heun.noise_levels[2::2]


@pytest.mark.parametrize("solver", ["ddim", "pndm", "euler"])
def test_image_to_image_has_the_tail_of_the_schedule(solver: str) -> None:
    scheduler, whole = made(solver)
    tail = discrete_schedule(scheduler, 20)
    assert tail == Schedule(
        whole.timesteps[-20:],
        whole.noise_levels[-20:],
        whole.epsilon_factors[-20:],
        denoised_factors=whole.denoised_factors[-20:],
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_epsilon_factor_turns_a_difference_of_predictions_into_one_of_noise(prediction_type: str) -> None:
    """At a fixed x_t, from x_t = a x0 + s eps and v = a eps - s x0, with two noises that differ by one."""
    schedule = made("ddim", prediction_type=prediction_type)[1]
    alpha, sigma = np.sqrt(1 - np.array(schedule.noise_levels) ** 2), np.array(schedule.noise_levels)
    x_t, noise = 0.3, np.array([[0.0], [1.0]])
    clean = (x_t - sigma * noise) / alpha
    predicted = {"epsilon": noise + 0 * sigma, "v_prediction": alpha * noise - sigma * clean, "sample": clean}
    difference = np.diff(predicted[prediction_type], axis=0)[0]
    np.testing.assert_allclose(difference * schedule.epsilon_factors, 1.0, rtol=1e-9)


def test_zero_terminal_snr_starts_at_pure_noise_with_factor_zero() -> None:
    options: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    schedule = made("ddim", prediction_type="v_prediction", **options)[1]
    assert (schedule.noise_levels[0], schedule.epsilon_factors[0]) == (1.0, 0.0)
    assert 0 < schedule.epsilon_factors[1] < schedule.epsilon_factors[-1] < 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_schedule_that_ends_without_noise_can_be_told(prediction_type: str) -> None:
    scheduler = DDIMScheduler(beta_start=0.0, beta_end=0.02, prediction_type=prediction_type)
    scheduler.set_timesteps(10)
    schedule = discrete_schedule(scheduler, 10)
    assert schedule.noise_levels[-1] == 0.0
    assert np.isfinite(schedule.epsilon_factors).all()


def test_an_unknown_prediction_type_is_refused_with_the_known_ones() -> None:
    scheduler, _ = made("ddim")
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(GuidanceError, match=r"'score' is unknown.*epsilon, v_prediction and sample"):
        discrete_schedule(scheduler, 50)


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(), SimpleNamespace(timesteps=torch.zeros(3))]
)
def test_a_scheduler_without_table_is_refused_with_those_that_have_one(scheduler: Any) -> None:
    with pytest.raises(GuidanceError, match=rf"{type(scheduler).__name__} has no table.*DDIM, PNDM, Euler"):
        discrete_schedule(scheduler, 1)
