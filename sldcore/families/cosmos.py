"""Cosmos 1: T5, and a transformer that is called for cond, then for uncond.

It is preconditioned as in EDM, over latents [B, C, F, H, W]. The pipeline adds guidance_scale times c - u to c, and so is
guided by one more than the scale says.
"""

from __future__ import annotations

from typing import ClassVar

from sldcore.families.base import COND, UNCOND
from sldcore.families.video import VideoFamily


class Cosmos(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [B, L, D], zero where there is padding."""

    name = "cosmos"
    shared_arguments = ("padding_mask",)
    apart = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
