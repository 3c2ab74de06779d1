"""Mochi: T5, and a transformer whose flow runs from noise at 0; it predicts x0 - eps over latents [B, C, F, H, W]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sldcore.families.base import TextOptions
from sldcore.families.video import VideoFamily


class Mochi(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D] and a mask [2B, L] of what is no padding."""

    name = "mochi"
    text_arguments = ("encoder_hidden_states", "encoder_attention_mask")

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States and mask."""
        states, mask, _, _ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}
