"""Wan 2.1 and 2.2 and SkyReels V2: UMT5, and one or two transformers that are called for cond, then for uncond.

They predict rectified flow over latents [B, C, F, H, W]. Wan 2.2's ``transformer`` has the steps of high noise, its
``transformer_2`` those of low noise; a run goes from one to the next.
"""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from sldcore.families.base import COND, NO_OPTIONS, UNCOND, TextOptions
from sldcore.families.video import VideoFamily


class Wan(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [B, L, D], zero where there is padding."""

    name = "wan"
    denoiser_names: ClassVar[tuple[str, ...]] = ("transformer", "transformer_2")
    shared_arguments = ("control_hidden_states_scale",)
    apart = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """Of the text as the pipeline cleans it."""
        return super().count_tokens(pipe, prompt_clean(text), options)
