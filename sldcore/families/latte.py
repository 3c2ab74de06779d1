"""Latte: T5 cut to the prompt's own length, and a transformer that predicts epsilon and its variance over [B, C, F, H, W]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sldcore.families.base import NO_OPTIONS, TextOptions
from sldcore.families.video import VideoFamily


class Latte(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D] without a mask.

    A prompt that is alone is cut to its own length instead, and the unconditional text to that of the prompt; in a batch,
    padding is set to zero. A concept is encoded as a prompt that is alone, so that no padding is attended to.
    """

    name = "latte"
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": 120}
    option_names: ClassVar[tuple[str, ...]] = ("clean_caption", "mask_feature")

    def concepts_apart(self, pipe: Any) -> bool:
        """Always: their texts have lengths of their own."""
        return True

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """Of the text as the pipeline cleans it."""
        clean = bool(options.arguments().get("clean_caption"))
        (cleaned,) = pipe._text_preprocessing(text, clean_caption=clean)
        return super().count_tokens(pipe, cleaned, options)
