"""Stable Diffusion XL: two CLIP text encoders (the refiner has the second one only), and a pooled text beside their states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import TextOptions
from sldcore.families.pag import PerturbedAttention
from sldcore.families.sd import MasksClipTokens
from sldcore.types import Schedule


class StableDiffusionXL(MasksClipTokens, PerturbedAttention):
    """Text goes into the UNet as ``encoder_hidden_states`` [2B, L, D] and, pooled, as ``text_embeds`` [2B, D']."""

    name = "stable-diffusion-xl"
    denoiser_names: ClassVar[tuple[str, ...]] = ("unet",)
    latents_argument = "sample"
    text_arguments = ("encoder_hidden_states", "added_cond_kwargs.text_embeds")
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": None, "tokenizer_2": None}
    option_names: ClassVar[tuple[str, ...]] = ("clip_skip", "lora_scale")
    clip_suffixes: ClassVar[tuple[str, ...]] = ("", "_2")

    def clip_states(self, encoder: Any, output: Any, skip: int | None) -> Tensor:
        """The last layer but one, as it is."""
        return output.hidden_states[-(2 + (skip or 0))]  # type: ignore[no-any-return]

    def pooled_argument(self, output: Any) -> str | None:
        """The second encoder's goes in as ``text_embeds``."""
        return "added_cond_kwargs.text_embeds" if hasattr(output, "text_embeds") else None

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """The same text for both encoders."""
        states, _, pooled, _ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states, "added_cond_kwargs.text_embeds": pooled}

    def schedule(self, pipe: Any) -> Schedule:
        """As the base's; with ``denoising_end`` without the last timesteps, which are left to a refiner."""
        left = _left_to_refiner(pipe)
        if not left:
            return super().schedule(pipe)
        # Some pipelines count their timesteps before they cut them, others afterwards.
        calls = min(pipe.num_timesteps, len(pipe.scheduler.timesteps) - left)
        whole = self.noise_schedule(pipe.scheduler, calls + left)
        return replace(
            whole,
            timesteps=whole.timesteps[:calls],
            noise_levels=whole.noise_levels[:calls],
            epsilon_factors=whole.epsilon_factors[:calls],
            denoised_factors=whole.denoised_factors[:calls],
            guidance_scale=float(pipe.guidance_scale),
        )


def _left_to_refiner(pipe: Any) -> int:
    """How many of the scheduler's last timesteps the pipeline does not reach; by the pipeline's own rule."""
    end = getattr(pipe, "denoising_end", None)
    if not isinstance(end, float) or not 0 < end < 1:
        return 0
    steps = pipe.scheduler.config.num_train_timesteps
    return int((pipe.scheduler.timesteps < round(steps - end * steps)).sum())
