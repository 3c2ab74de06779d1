"""Kolors: Stable Diffusion XL's UNet with ChatGLM as its text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sldcore.families.sdxl import StableDiffusionXL


class Kolors(StableDiffusionXL):
    """Hidden states [2B, 256, D] and the last token's as the pooled text."""

    name = "kolors"
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": 256}
    masked_spaces: ClassVar[None] = None  # type: ignore[assignment]  # ChatGLM's tokens cannot be masked
    option_names: ClassVar[tuple[str, ...]] = ()  # pipelines take max_sequence_length and make no use of it

    def tokens_of(self, pipe: Any, tokenizer: str, text: str) -> int:
        """With the two tokens that ChatGLM's tokenizer puts in front."""
        return len(getattr(pipe, tokenizer)(text, truncation=False).input_ids)
