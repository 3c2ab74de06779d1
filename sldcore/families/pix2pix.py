"""InstructPix2Pix (arXiv 2211.09800): guidance by a text and by a picture, [text and picture; picture; neither].

The pipeline computes e_0 + s_T (e_TP - e_P) + s_P (e_P - e_0). Guidance by the text starts from e_P, the prediction without
text, which is therefore the unconditional one of safety guidance; e_0 is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import COND, NO_OPTIONS, UNCOND, TextOptions
from sldcore.families.sd import StableDiffusion
from sldcore.families.sdxl import StableDiffusionXL

PARTS = (COND, UNCOND, "neither")


class InstructPix2Pix(StableDiffusion):
    """Stable Diffusion 1.x; its pipeline has no public ``encode_prompt``."""

    name = "instruct-pix2pix"
    order: ClassVar[tuple[str, ...]] = PARTS
    masked_spaces: ClassVar[None] = None  # type: ignore[assignment]  # prompts do not pass through encode_prompt

    def text_options(self, pipe: Any, encoded: Mapping[str, Any]) -> TextOptions:
        """There are none."""
        return NO_OPTIONS

    def options_of_call(self, pipe: Any, arguments: Mapping[str, Any]) -> TextOptions:
        """There are none."""
        return NO_OPTIONS

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """The conditional states alone."""
        states = pipe._encode_prompt(text, pipe._execution_device, 1, False)
        return {"encoder_hidden_states": states}


class InstructPix2PixXL(StableDiffusionXL):
    """Stable Diffusion XL."""

    name = "instruct-pix2pix-xl"
    order: ClassVar[tuple[str, ...]] = PARTS
    masked_spaces: ClassVar[None] = None  # type: ignore[assignment]  # prompts do not pass through encode_prompt
