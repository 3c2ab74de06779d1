"""The original project's pipeline, on top of the engine.

Calls written for ``sld.SLDPipeline`` (ml-research/safe-latent-diffusion) and for diffusers' deprecated
``StableDiffusionPipelineSafe`` run unchanged, with the same numbers and the same attributes on the output.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from diffusers import StableDiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sldcore.concepts import load_pack
from sldcore.engine import SafetyEngine
from sldcore.errors import ConceptError
from sldcore.loading import PLAYGROUND, safetensors_only
from sldcore.outcome import Outcome
from sldcore.playground import MODEL
from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy, Window
from sldcore.request import Sample, prompts_of, wants_arrays
from sldcore.types import Report, Trace


@dataclass
class SLDPipelineOutput(BaseOutput):  # type: ignore[misc]
    """Output of :class:`SLDPipeline`.

    ``images``: list of pictures or array [B, H, W, 3] in 0..1; withheld ones are black. ``nsfw_content_detected``:
    one flag per picture, or None without a safety checker. ``applied_safety_concept``: the concept text, or None
    if guidance was off. ``unsafe_images``: what the checker flagged, black elsewhere; None without a checker.
    ``reports`` and ``trace`` are the engine's.
    """

    images: list[Image.Image] | NDArray[np.float32]
    nsfw_content_detected: list[bool] | None
    applied_safety_concept: str | None
    unsafe_images: list[Image.Image] | NDArray[np.float32] | None
    reports: tuple[Report, ...]
    trace: Trace


class SLDPipeline(StableDiffusionPipeline):  # type: ignore[misc]
    """Stable Diffusion 1.x/2.x with Safe Latent Diffusion; medium by default (arXiv 2211.05105)."""

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = False,
        safety_concept: str | None = None,
    ) -> None:
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.safety_concept = (
            load_pack("inappropriate").whole().text if safety_concept is None else safety_concept
        )
        self._engine: SafetyEngine | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Self:
        """Load a Stable Diffusion checkpoint from a folder or the hub, or ``"playground"``; safetensors only.

        Raises:
            ModelError: there is nothing at that place, or it holds pickled weights only.
        """
        place = MODEL if pretrained_model_name_or_path == PLAYGROUND else pretrained_model_name_or_path
        with safetensors_only(place, options) as checked:
            loaded: Self = super().from_pretrained(str(place), **checked)
        return loaded

    @property
    def safety_concept(self) -> str:
        """The text that guidance steers away from."""
        return self._safety_concept

    @safety_concept.setter
    def safety_concept(self, concept: str) -> None:
        if not isinstance(concept, str) or not concept.strip():
            raise ConceptError(
                "the safety concept must be a text that says what to steer away from; to switch guidance off, call the "
                "pipeline with sld_guidance_scale=0"
            )
        self._safety_concept = concept
        self.register_to_config(safety_concept=concept)

    def plain_call(self, *args: Any, **kwargs: Any) -> Any:
        """``StableDiffusionPipeline.__call__``, which the engine guards."""
        return super().__call__(*args, **kwargs)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Any = None,
        latents: Tensor | None = None,
        ip_adapter_image: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, int, Tensor], None] | None = None,
        callback_steps: int = 1,
        sld_guidance_scale: float = 1000,
        sld_warmup_steps: int = 10,
        sld_threshold: float = 0.01,
        sld_momentum_scale: float = 0.3,
        sld_mom_beta: float = 0.4,
        **pipeline_arguments: Any,
    ) -> SLDPipelineOutput | tuple[Any, ...]:
        """Generate, steering away from ``safety_concept``.

        The ``sld_`` arguments are the paper's s_S, delta, lambda, s_m and beta; ``sld_guidance_scale`` below 1 switches
        guidance off, which is warned about. The others are ``StableDiffusionPipeline``'s, ``prompt`` included.

        Raises:
            ConfigurationError: there is no prompt, or guidance could not act (``guidance_scale`` <= 1, warm-up longer
                than the run).
        """
        as_arrays = wants_arrays(output_type)
        policy = self._policy(
            sld_guidance_scale, sld_warmup_steps, sld_threshold, sld_momentum_scale, sld_mom_beta
        )
        arguments = dict(
            pipeline_arguments,
            prompt=prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            eta=eta,
            generator=generator,
            latents=latents,
            ip_adapter_image=ip_adapter_image,
        )
        if callback is not None:
            arguments["callback_on_step_end"] = _modern_callback(callback, callback_steps)
        if self._engine is None:
            self._engine = SafetyEngine(self, policy)
        prompts = prompts_of(prompt, pipeline_arguments)
        samples = [Sample(text, None, policy) for text in prompts for _ in range(num_images_per_prompt)]
        output = self._output(self._engine.denoise(samples, arguments), policy, as_arrays)
        if return_dict:
            return output
        return (
            output.images,
            output.nsfw_content_detected,
            output.applied_safety_concept,
            output.unsafe_images,
        )

    def _policy(
        self, scale: float, warmup: int, threshold: float, momentum_scale: float, momentum_beta: float
    ) -> SafetyPolicy:
        if scale < 1:
            warnings.warn(
                "sld_guidance_scale < 1: safety guidance is off for this call", UserWarning, stacklevel=3
            )
            return SafetyPolicy.preset("off")
        options = {
            "scale": scale,
            "threshold": threshold,
            "momentum_scale": momentum_scale,
            "momentum_beta": momentum_beta,
        }
        return SafetyPolicy(
            name="sld",
            guidance=GuidanceSpec(method="sld", options=options, window=Window(start=warmup)),
            concepts=(ConceptUse(text=self.safety_concept),),
        )

    def _output(self, outcome: Outcome, policy: SafetyPolicy, as_arrays: bool) -> SLDPipelineOutput:
        checked = self.safety_checker is not None
        flags = [report.flagged for report in outcome.reports]
        flagged = np.where(np.array(flags)[:, None, None, None], outcome.pixels, np.float32(0))

        def convert(pixels: NDArray[np.float32]) -> Any:
            return pixels if as_arrays else self.numpy_to_pil(pixels)

        return SLDPipelineOutput(
            images=convert(outcome.shown()),
            nsfw_content_detected=flags if checked else None,
            applied_safety_concept=self.safety_concept if policy.guides else None,
            unsafe_images=convert(flagged) if checked else None,
            reports=outcome.reports,
            trace=outcome.trace,
        )


def _modern_callback(
    callback: Callable[[int, int, Tensor], None], every: int
) -> Callable[..., dict[str, Any]]:
    """The original's callback(step, timestep, latents) as diffusers calls it today."""

    def on_step_end(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if step % every == 0:
            callback(step, timestep, tensors["latents"])
        return {}

    return on_step_end
