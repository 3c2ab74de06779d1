"""From a prediction to the clean latents x0 and the noise, and back; whatever the model predicts.

Every schedule tells x0 = a * latents + b * prediction (:attr:`sldcore.types.Step.denoised_factors`). With latents
A x0 + S eps, the prediction's epsilon factor f is -A b / S. So the signal-to-noise ratio A / S is -f / b, and divided by
sqrt(A^2 + S^2) the latents of every model are variance-preserving: alpha x0 + sigma eps with alpha^2 + sigma^2 = 1. In that
form numbers such as a variance mean the same for DDIM, EDM and rectified flow.

Latents may have more channels than the prediction (inpainting), and predictions more than the latents (models that learn
the variance): what both have comes first on the axis on which they differ.
"""

from __future__ import annotations

from math import hypot
from typing import NamedTuple

from torch import Tensor

from sldcore.errors import GuidanceError
from sldcore.types import Step


class Level(NamedTuple):
    """What the latents of one denoiser call consist of: latents / ``norm`` = ``alpha`` x0 + ``sigma`` eps, squares summing to 1."""

    alpha: float
    sigma: float
    norm: float


class Reverse(NamedTuple):
    """q(x_s | x_t, x0) of DDPM between two calls, t the noisier one, all variance-preserving.

    The mean is ``latents`` * x_t + ``denoised`` * x0.
    """

    latents: float
    denoised: float
    variance: float


def tells_denoised(step: Step) -> bool:
    """True if the prediction at ``step`` says what x0 is, and another x0 can be told by another prediction."""
    return step.denoised_factors[1] != 0


def level(step: Step) -> Level:
    """What the latents that the denoiser is given at ``step`` consist of.

    Raises:
        GuidanceError: the prediction says nothing about x0.
    """
    if step.noise_level == 0:
        a, b = step.denoised_factors
        return Level(1.0, 0.0, 1 / a if a and not b else 1.0)
    if not tells_denoised(step):
        raise GuidanceError(
            f"at step {step.index} the prediction does not tell the clean latents; check tells_denoised()"
        )
    ratio = -step.epsilon_factor / step.denoised_factors[1]
    root = hypot(1.0, ratio)
    return Level(ratio / root, 1 / root, step.noise_level * root)


def denoised(step: Step, latents: Tensor, prediction: Tensor) -> Tensor:
    """x0, [B, C, ...] with the channels that latents and prediction share."""
    a, b = step.denoised_factors
    latents, prediction = common(latents, prediction)
    return a * latents + b * prediction


def prediction_of(step: Step, latents: Tensor, x0: Tensor) -> Tensor:
    """The prediction that says ``x0``: the inverse of :func:`denoised`.

    Raises:
        GuidanceError: no prediction does.
    """
    a, b = step.denoised_factors
    if b == 0:
        raise GuidanceError(
            f"at step {step.index} no prediction tells the clean latents; check tells_denoised()"
        )
    latents, x0 = common(latents, x0)
    return (x0 - a * latents) / b


def noise_of(step: Step, latents: Tensor, prediction: Tensor) -> Tensor:
    """The noise eps that a prediction says, [B, C, ...].

    Raises:
        GuidanceError: the prediction says nothing about it, or there is none.
    """
    alpha, sigma, norm = level(step)
    if sigma == 0:
        raise GuidanceError(f"at step {step.index} the latents have no noise")
    shared, _ = common(latents, prediction)
    return (shared / norm - alpha * denoised(step, latents, prediction)) / sigma


def reverse(step: Step, later: Step) -> Reverse | None:
    """DDPM's reverse step (arXiv 2006.11239, equations 6 and 7) from one call's noise level to a later one's.

    With alpha_ts = alpha_t / alpha_s and sigma_ts^2 = 1 - alpha_ts^2 the mean is
    (alpha_ts sigma_s^2 x_t + alpha_s sigma_ts^2 x0) / sigma_t^2, and the variance sigma_ts^2 sigma_s^2 / sigma_t^2. None
    where there is no such step: the noise does not fall, the later latents have none, or x0 cannot be told.
    """
    if not (tells_denoised(step) and tells_denoised(later)) or not 0 < later.noise_level < step.noise_level:
        return None
    (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = level(step), level(later)
    ratio = alpha_t / alpha_s if alpha_s > 0 else 1.0
    between = 1 - ratio**2
    if between <= 0:
        return None
    return Reverse(
        ratio * (sigma_s / sigma_t) ** 2,
        alpha_s * between / sigma_t**2,
        between * (sigma_s / sigma_t) ** 2,
    )


def common(latents: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the channels that the other one lacks.

    Raises:
        GuidanceError: the shapes differ on more than one axis.
    """
    if latents.shape == prediction.shape:
        return latents, prediction
    axes = [
        axis
        for axis in range(prediction.ndim)
        if latents.shape[axis : axis + 1] != prediction.shape[axis : axis + 1]
    ]
    if latents.ndim != prediction.ndim or len(axes) != 1 or axes == [0]:
        raise GuidanceError(
            f"latents {list(latents.shape)} and predictions {list(prediction.shape)} differ in more than their channels, so "
            f"the clean latents cannot be told; use a method that does not need them, such as sld"
        )
    (axis,) = axes
    size = min(latents.shape[axis], prediction.shape[axis])
    return latents.narrow(axis, 0, size), prediction.narrow(axis, 0, size)


def with_common(prediction: Tensor, change: Tensor) -> Tensor:
    """``prediction`` plus a ``change`` of those of its channels that the latents have."""
    if change.shape == prediction.shape:
        return prediction + change
    (axis,) = [at for at in range(prediction.ndim) if prediction.shape[at] != change.shape[at]]
    changed = prediction.clone()
    changed.narrow(axis, 0, change.shape[axis]).add_(change)
    return changed


def guidance_scale(told: float | None, option: float) -> float:
    """The scale s of the pipeline's u + s (c - u): the run's own if the pipeline tells it, else what an option says."""
    return option if told is None else told
