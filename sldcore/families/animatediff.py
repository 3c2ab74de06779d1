"""AnimateDiff: Stable Diffusion and Stable Diffusion XL with motion modules, over latents [B, C, F, H, W].

The UNet is called with 2B rows of latents and 2B*F rows of text, those of a sample's frames together; ControlNet's
residuals have as many. A concept row brings F rows of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sldcore.families.sd import StableDiffusion
from sldcore.families.sdxl import StableDiffusionXL


class AnimateDiff(StableDiffusion):
    """Text goes in as ``encoder_hidden_states`` [2B*F, L, D]."""

    name = "animatediff"

    def rows_per_sample(self, arguments: Mapping[str, Any]) -> int:
        """F."""
        return int(arguments["sample"].shape[2])


class AnimateDiffXL(StableDiffusionXL):
    """Text goes in as ``encoder_hidden_states`` [2B*F, L, D] and, pooled, as ``text_embeds`` [2B, D']."""

    name = "animatediff-xl"

    def rows_per_sample(self, arguments: Mapping[str, Any]) -> int:
        """F."""
        return int(arguments["sample"].shape[2])
