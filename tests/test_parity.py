"""The same pictures as diffusers' StableDiffusionPipelineSafe, which ports the original authors' code.

Both round differently: u + s * ((c - gamma) - u) here, u + s * ((c - u) - gamma) there. Where the method has steps or is
steep (lambda, s_S = 5000), the last bit of float32 can decide about an element, and a trained model amplifies that: the
reference moves by more than 1e-4 when its own latents do by one bit. So the playground is compared in float64, where nothing
but the equations is left, and in float32 against what the reference does to itself.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionPipelineSafe,
)
from numpy.typing import NDArray
from torch import Tensor

from sldcore import SafetyPolicy, SLDPipeline, load_pipeline
from sldcore.playground import MODEL

# The reference itself is deprecated, and so is how it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")

TOLERANCE = 1e-4
GUIDANCE_SCALE = 4.0
PRESETS = ("weak", "medium", "strong", "max", "weak-diffusers")
STABLE_DIFFUSION = tiny_pipelines.ddim().config
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "DDIM": tiny_pipelines.ddim,
    "PNDM": lambda: PNDMScheduler.from_config(STABLE_DIFFUSION, skip_prk_steps=True),
    "Euler": lambda: EulerDiscreteScheduler.from_config(STABLE_DIFFUSION),
    "DPM++ 2M": lambda: DPMSolverMultistepScheduler.from_config(STABLE_DIFFUSION),
    "LMS": lambda: LMSDiscreteScheduler.from_config(STABLE_DIFFUSION),
}
PROMPTS = tiny_pipelines.PROMPTS[:3]


class Trio:
    """Our pipeline, diffusers' safe one and the plain one over the same weights, and latents [3, C, size, size]."""

    def __init__(self, components: dict[str, Any], scheduler: Callable[[], Any], size: int) -> None:
        absent: dict[str, Any] = {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }

        def over_same_weights(cls: type) -> Any:
            made = cls(**components, **absent, scheduler=scheduler())
            made.set_progress_bar_config(disable=True)
            return made

        self.ours = over_same_weights(SLDPipeline)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated as a whole
            self.safe = over_same_weights(StableDiffusionPipelineSafe)
        self.safe.safety_concept = self.ours.safety_concept
        self.plain = over_same_weights(StableDiffusionPipeline)
        unet = self.plain.unet
        self.latents = tiny_pipelines.latents(3, channels=unet.config.in_channels, size=size).to(unet.dtype)
        self._unguided: dict[tuple[int, int], NDArray[np.float32]] = {}

    def images(
        self, pipe: Any, batch: int, steps: int, latents: Tensor | None = None, **sld: float
    ) -> NDArray[np.float32]:
        images: NDArray[np.float32] = pipe(
            list(PROMPTS[:batch]),
            latents=(self.latents if latents is None else latents)[:batch],
            num_inference_steps=steps,
            guidance_scale=GUIDANCE_SCALE,
            output_type="np",
            **sld,
        ).images
        return images

    def unguided(self, batch: int, steps: int) -> NDArray[np.float32]:
        if (batch, steps) not in self._unguided:
            self._unguided[batch, steps] = self.images(self.plain, batch, steps)
        return self._unguided[batch, steps]


def sld_arguments(preset: str) -> dict[str, float]:
    """A preset as the original's arguments."""
    spec = SafetyPolicy.preset(preset).guidance
    assert spec is not None
    names = {
        "scale": "sld_guidance_scale",
        "threshold": "sld_threshold",
        "momentum_scale": "sld_momentum_scale",
        "momentum_beta": "sld_mom_beta",
    }
    options = {names[name]: float(value) for name, value in spec.options.items()}
    return {**options, "sld_warmup_steps": int(spec.window.start)}


@functools.cache
def components_of_the_playground(dtype: str) -> dict[str, Any]:
    pipe = load_pipeline("playground", device="cpu", dtype="float32").to(getattr(torch, dtype))
    return {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}


def playground(dtype: str, scheduler: str, size: int) -> Trio:
    if not MODEL.is_dir():
        pytest.skip("the playground model has not been trained")
    return Trio(components_of_the_playground(dtype), SCHEDULERS[scheduler], size)


@pytest.fixture(scope="module", params=SCHEDULERS)
def miniature(request: pytest.FixtureRequest, parts: dict[str, Any]) -> Trio:
    return Trio(parts, SCHEDULERS[request.param], size=16)


@pytest.fixture(scope="module", params=SCHEDULERS)
def playground_in_float64(request: pytest.FixtureRequest) -> Trio:
    return playground("float64", request.param, size=4)  # small pictures, as double precision is slow


def assert_guidance_acts(trio: Trio, reference: NDArray[np.float32], steps: int) -> None:
    effect = np.abs(reference - trio.unguided(len(reference), steps)).max(axis=(1, 2, 3))
    assert effect.min() > 5 * TOLERANCE, "guidance does not act, so agreement would say nothing"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_pictures_are_those_of_diffusers_safe_pipeline(miniature: Trio, preset: str, batch: int) -> None:
    sld, steps = sld_arguments(preset), 20
    reference = miniature.images(miniature.safe, batch, steps, **sld)
    assert_guidance_acts(miniature, reference, steps)
    ours = miniature.images(miniature.ours, batch, steps, **sld)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("preset", PRESETS)
def test_pictures_of_the_playground_are_those_of_diffusers_safe_pipeline(
    playground_in_float64: Trio, preset: str
) -> None:
    trio, sld = playground_in_float64, sld_arguments(preset)
    steps = max(5, int(sld["sld_warmup_steps"]) + 3)
    reference = trio.images(trio.safe, 2, steps, **sld)
    assert_guidance_acts(trio, reference[:1], steps)
    for batch in (1, 2) if preset == "max" else (2,):
        ours = trio.images(trio.ours, batch, steps, **sld)
        np.testing.assert_allclose(ours, reference[:batch], rtol=0, atol=TOLERANCE / 100)


IN_FLOAT32 = [("DDIM", preset) for preset in PRESETS] + [
    (each, "max") for each in SCHEDULERS if each != "DDIM"
]
"""All presets, and with every scheduler the one that is steepest. The tests above have all pairs."""


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "preset"), IN_FLOAT32)
def test_in_float32_pictures_of_the_playground_agree_as_far_as_the_reference_agrees_with_itself(
    scheduler: str, preset: str
) -> None:
    trio, sld, steps = playground("float32", scheduler, size=8), sld_arguments(preset), 20
    reference = trio.images(trio.safe, 3, steps, **sld)
    nudged = trio.latents * (1 + torch.finfo(torch.float32).eps)
    itself = float(np.abs(trio.images(trio.safe, 3, steps, latents=nudged, **sld) - reference).max())
    ours = trio.images(trio.ours, 3, steps, **sld)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=max(TOLERANCE, 10 * itself))
