"""CogVideoX: T5 without a mask, and a transformer that predicts v over latents [B, F, C, H, W]."""

from __future__ import annotations

from sldcore.families.video import VideoFamily


class CogVideoX(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D]."""

    name = "cogvideox"
