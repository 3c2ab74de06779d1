"""The same pictures as diffusers' StableDiffusionPipelineSafe, which ports the original authors' code."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionPipelineSafe,
)
from numpy.typing import NDArray

from sldcore import SafetyPolicy, SLDPipeline, load_pipeline
from sldcore.playground import MODEL

# The reference itself is deprecated, and so is how it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")

TOLERANCE = 1e-4
STEPS = 20  # more than the longest warm-up, 15
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
    """Our pipeline, diffusers' safe one and the plain one over the same weights; plain pictures are kept."""

    def __init__(self, components: dict[str, Any], scheduler: Callable[[], Any]) -> None:
        unet = components["unet"].config
        self._latents = tiny_pipelines.latents(3, channels=unet.in_channels, size=unet.sample_size)
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
        plain = over_same_weights(StableDiffusionPipeline)
        self.plain = {batch: self.images(plain, batch) for batch in (1, 3)}

    def images(self, pipe: Any, batch: int, **sld: float) -> NDArray[np.float32]:
        return pipe(
            list(PROMPTS[:batch]),
            latents=self._latents[:batch],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            output_type="np",
            **sld,
        ).images


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


@pytest.fixture(scope="module", params=SCHEDULERS)
def miniature(request: pytest.FixtureRequest, parts: dict[str, Any]) -> Trio:
    return Trio(parts, SCHEDULERS[request.param])


@pytest.fixture(scope="module", params=SCHEDULERS)
def playground(request: pytest.FixtureRequest) -> Trio:
    if not MODEL.is_dir():
        pytest.skip("the playground model has not been trained")
    pipe = load_pipeline("playground", device="cpu", dtype="float32")
    components = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    return Trio(components, SCHEDULERS[request.param])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_pictures_are_those_of_diffusers_safe_pipeline(miniature: Trio, preset: str, batch: int) -> None:
    assert_parity(miniature, preset, batch)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_pictures_on_the_playground_are_those_of_diffusers_safe_pipeline(
    playground: Trio, preset: str, batch: int
) -> None:
    assert_parity(playground, preset, batch)


def assert_parity(trio: Trio, preset: str, batch: int) -> None:
    ours = trio.images(trio.ours, batch, **sld_arguments(preset))
    reference = trio.images(trio.safe, batch, **sld_arguments(preset))
    effect = np.abs(reference - trio.plain[batch]).max(axis=(1, 2, 3))
    assert effect.min() > 5 * TOLERANCE, "guidance does not act, so agreement would say nothing"
    np.testing.assert_allclose(ours, reference, rtol=0, atol=TOLERANCE)
