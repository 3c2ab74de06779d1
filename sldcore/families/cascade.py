"""Stable Cascade's prior: CLIP, and a UNet that predicts epsilon of an image embedding; [cond; uncond].

The decoder makes the picture of that embedding, by default without classifier-free guidance, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import COND, UNCOND, DiffusersFamily, TextOptions, encode_prompt_of
from sldcore.families.noise import denoised_factors
from sldcore.types import Schedule


class StableCascadePrior(DiffusersFamily):
    """Text goes in as ``clip_text`` [2B, 77, D] and ``clip_text_pooled`` [2B, 1, D']."""

    name = "stable-cascade-prior"
    denoiser_names: ClassVar[tuple[str, ...]] = ("prior",)
    latents_argument = "sample"
    text_arguments = ("clip_text", "clip_text_pooled")
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
    option_names: ClassVar[tuple[str, ...]] = ()

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States and pooled text."""
        states, pooled, _, _ = encode_prompt_of(pipe)(pipe._execution_device, 1, 1, False, text)
        return {"clip_text": states, "clip_text_pooled": pooled}

    def noise_schedule(self, scheduler: Any, calls: int) -> Schedule:
        """Wuerstchen's scheduler counts time from 1 to 0, and its last timestep is no denoiser call."""
        if not hasattr(scheduler, "_alpha_cumprod"):
            return super().noise_schedule(scheduler, calls)
        timesteps = scheduler.timesteps[:-1][-calls:]
        alpha_bars = scheduler._alpha_cumprod(timesteps, timesteps.device).flatten().tolist()
        levels = tuple(sqrt(max(1 - alpha_bar, 0.0)) for alpha_bar in alpha_bars)
        return Schedule(
            tuple(timesteps.tolist()),
            levels,
            (1.0,) * len(levels),
            denoised_factors=tuple(denoised_factors("epsilon", min(at, 1.0)) for at in alpha_bars),
        )

    def picture_size(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """What the call says, else its default."""
        return int(arguments.get("height") or 1024), int(arguments.get("width") or 1024)
