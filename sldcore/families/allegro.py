"""Allegro: T5, and a transformer that predicts epsilon over latents [B, C, F, H, W]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import NO_OPTIONS, TextOptions
from sldcore.families.video import VideoFamily


class Allegro(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, 1, L, D] and a mask [2B, L] of what is no padding."""

    name = "allegro"
    text_arguments = ("encoder_hidden_states", "encoder_attention_mask")
    option_names: ClassVar[tuple[str, ...]] = ("max_sequence_length", "clean_caption")

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States and mask."""
        states, mask, _, _ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states.unsqueeze(1), "encoder_attention_mask": mask}

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """Of the text as the pipeline cleans it."""
        clean = bool(options.arguments().get("clean_caption"))
        (cleaned,) = pipe._text_preprocessing(text, clean_caption=clean)
        return super().count_tokens(pipe, cleaned, options)
