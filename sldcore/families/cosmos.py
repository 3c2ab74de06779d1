"""Cosmos 1: T5, and a transformer that is called for cond, then for uncond.

It is preconditioned as in EDM, over latents [B, C, F, H, W]. The pipeline adds guidance_scale times c - u to c, and so is
guided by one more than the scale says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from sldcore.families.base import COND, UNCOND
from sldcore.families.video import VideoFamily
from sldcore.types import Schedule


class Cosmos(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [B, L, D], zero where there is padding."""

    name = "cosmos"
    shared_arguments = ("padding_mask",)
    apart = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)

    def schedule(self, pipe: Any) -> Schedule:
        """With the scale that e_p + s (e_p - e_u) = e_u + (s + 1) (e_p - e_u) amounts to."""
        told = super().schedule(pipe)
        return told if told.guidance_scale is None else replace(told, guidance_scale=told.guidance_scale + 1)
