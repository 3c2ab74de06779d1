"""Noise levels of diffusers' schedulers, read on the host once per run."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any, Final

import numpy as np

from sldcore.errors import GuidanceError
from sldcore.types import Schedule

SMALLEST_ALPHA: Final = 1e-3
"""Share of x0 in x_t below which a noise prediction says nothing about x0; Stable Diffusion's smallest is 0.07."""


def schedule_of(scheduler: Any, calls: int, sign: int = 1) -> Schedule:
    """The last ``calls`` denoiser calls of a scheduler whose timesteps are set, of whatever kind it is.

    ``sign`` is -1 if the denoiser predicts the opposite of what the scheduler is handed. The latents of
    ``denoised_factors`` are those that ``scale_model_input`` gives, where a scheduler scales them.

    Raises:
        GuidanceError: the noise levels cannot be told.
    """
    make = flow_schedule if is_flow(scheduler) else edm_schedule if is_edm(scheduler) else discrete_schedule
    schedule = make(scheduler, calls)
    if sign == 1:
        return schedule
    return replace(
        schedule,
        epsilon_factors=tuple(sign * factor for factor in schedule.epsilon_factors),
        denoised_factors=tuple((a, sign * b) for a, b in schedule.denoised_factors),
    )


def is_flow(scheduler: Any) -> bool:
    """True for rectified flow, x = (1 - sigma) x0 + sigma eps."""
    config = scheduler.config
    return (
        "FlowMatch" in type(scheduler).__name__
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def flow_schedule(scheduler: Any, calls: int) -> Schedule:
    """The schedule of a rectified flow v = eps - x0, at fixed x: d eps = (1 - sigma) dv, and x0 = x - sigma v.

    With inverted sigmas (Mochi) time runs from noise at 0, and the velocity is x0 - eps.

    Raises:
        GuidanceError: the scheduler keeps no sigmas.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        raise GuidanceError(
            f"{type(scheduler).__name__} keeps no sigmas, so noise levels cannot be told; use diffusers' "
            f"FlowMatchEulerDiscreteScheduler or another of its schedulers with flow sigmas"
        )
    timesteps = [float(value) for value in scheduler.timesteps[-calls:].tolist()]
    if len(sigmas) == len(scheduler.timesteps) + 1:
        levels = [float(value) for value in sigmas[:-1][-calls:].tolist()]
    else:
        levels = [timestep / scheduler.config.num_train_timesteps for timestep in timesteps]
    inverted = bool(scheduler.config.get("invert_sigmas"))
    levels = [min(max(1 - level if inverted else level, 0.0), 1.0) for level in levels]
    sign = -1.0 if inverted else 1.0
    return Schedule(
        tuple(timesteps),
        tuple(levels),
        tuple(sign * (1 - level) for level in levels),
        denoised_factors=tuple((1.0, -sign * level) for level in levels),
    )


def is_edm(scheduler: Any) -> bool:
    """True for a denoiser that is preconditioned as in EDM (arXiv 2206.00364), x = x0 + sigma eps."""
    return type(scheduler).__name__.startswith("EDM")


def edm_schedule(scheduler: Any, calls: int) -> Schedule:
    """The schedule of x0 = c_skip x + c_out F, at fixed x: d eps = -(c_out / sigma) dF.

    |c_out| is sigma sigma_data / sqrt(sigma^2 + sigma_data^2); it is negative for v-prediction. The denoiser is given c_in x
    with c_in = 1 / sqrt(sigma^2 + sigma_data^2), so x0 is c_skip / c_in times that, c_skip = (c_in sigma_data)^2.

    Raises:
        GuidanceError: an unknown prediction type.
    """
    data, kind = float(scheduler.config.sigma_data), scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise GuidanceError(
            f"prediction type '{kind}' is unknown to EDM; supported are epsilon and v_prediction"
        )
    sign = 1.0 if kind == "v_prediction" else -1.0
    sigmas = [float(value) for value in scheduler.sigmas[:-1][-calls:].tolist()]
    sizes = [sqrt(sigma**2 + data**2) for sigma in sigmas]
    return Schedule(
        tuple(float(value) for value in scheduler.timesteps[-calls:].tolist()),
        tuple(sigma / size for sigma, size in zip(sigmas, sizes, strict=True)),
        tuple(sign * data / size for size in sizes),
        denoised_factors=tuple(
            (data**2 / size, -sign * sigma * data / size) for sigma, size in zip(sigmas, sizes, strict=True)
        ),
    )


def discrete_schedule(scheduler: Any, calls: int) -> Schedule:
    """The schedule of a variance-preserving model with a table of alpha_bar over training timesteps.

    ``calls`` is the number of denoiser calls; they are the last ones of the scheduler's timesteps. Timesteps between
    two training timesteps (Euler, DPM++ with Karras sigmas) are interpolated in log alpha_bar. x0 is told from the sigmas
    that the solver itself uses, where it keeps some: DPM++ rounds the timesteps that it shows.

    Raises:
        GuidanceError: no table, or an unknown prediction type.
    """
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise GuidanceError(
            f"{type(scheduler).__name__} has no table of alpha_bar, so noise levels cannot be told; use one of "
            f"diffusers' discrete schedulers (DDIM, PNDM, Euler, DPM++, LMS, UniPC, Heun)"
        )
    timesteps = [float(value) for value in scheduler.timesteps[-calls:].tolist()]
    alpha_bar = np.asarray(table.tolist(), dtype=np.float64).clip(0.0, 1.0)
    log_alpha_bar = np.log(np.maximum(alpha_bar, 1e-20))
    alpha_bars = []
    for timestep in timesteps:
        at = float(np.exp(np.interp(timestep, np.arange(len(alpha_bar)), log_alpha_bar)))
        alpha_bars.append(0.0 if at <= 1e-19 else at)
    kind = scheduler.config.prediction_type
    return Schedule(
        tuple(timesteps),
        tuple(sqrt(1 - at) for at in alpha_bars),
        tuple(_epsilon_factor(kind, at) for at in alpha_bars),
        denoised_factors=tuple(
            denoised_factors(kind, at) for at in _of_sigmas(scheduler, calls) or alpha_bars
        ),
    )


def _of_sigmas(scheduler: Any, calls: int) -> list[float]:
    """alpha_bar = 1 / (1 + sigma^2) of each call; empty if the scheduler does not keep one sigma for each of its timesteps."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) != len(scheduler.timesteps) + 1:
        return []
    return [1 / (1 + float(sigma) ** 2) for sigma in sigmas[:-1][-calls:].tolist()]


def denoised_factors(prediction_type: str, alpha_bar: float) -> tuple[float, float]:
    """Factors a and b of x0 = a x_t + b prediction, from x_t = alpha x0 + sigma eps and v = alpha eps - sigma x0.

    (0, 0) where x0 cannot be told: epsilon of next to pure noise (zero terminal SNR).

    Raises:
        GuidanceError: an unknown prediction type.
    """
    alpha, sigma = sqrt(alpha_bar), sqrt(1 - alpha_bar)
    if prediction_type == "epsilon":
        return (1 / alpha, -sigma / alpha) if alpha > SMALLEST_ALPHA else (0.0, 0.0)
    if prediction_type == "v_prediction":
        return alpha, -sigma
    if prediction_type == "sample":
        return 0.0, 1.0
    raise _unknown(prediction_type)


def _epsilon_factor(prediction_type: str, alpha_bar: float) -> float:
    """What a difference of predictions is multiplied with to give a difference of noise predictions.

    From x_t = a x0 + s eps and v = a eps - s x0 at fixed x_t: d eps = a dv, and d eps = -(a / s) d x0.
    0 where the prediction says nothing about the noise: v at pure noise, x0 without any.
    """
    alpha, sigma = sqrt(alpha_bar), sqrt(1 - alpha_bar)
    if prediction_type == "epsilon":
        return 1.0
    if prediction_type == "v_prediction":
        return alpha
    if prediction_type == "sample":
        return -alpha / sigma if sigma > 0 else 0.0
    raise _unknown(prediction_type)


def _unknown(prediction_type: str) -> GuidanceError:
    return GuidanceError(
        f"prediction type '{prediction_type}' is unknown; supported are epsilon, v_prediction and sample"
    )
