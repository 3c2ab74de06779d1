"""Sana: Gemma 2 with an instruction in front of the prompt, and a transformer that predicts rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import NO_OPTIONS, TextOptions
from sldcore.families.pag import PerturbedAttention


class Sana(PerturbedAttention):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D] and a mask [2B, L] that says which of them are padding."""

    name = "sana"
    text_arguments = ("encoder_hidden_states", "encoder_attention_mask")
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": "max_sequence_length"}
    option_names: ClassVar[tuple[str, ...]] = (
        "clean_caption",
        "max_sequence_length",
        "complex_human_instruction",
        "lora_scale",
    )

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States and mask."""
        states, mask, _, _ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def window(self, pipe: Any, options: TextOptions) -> int:
        """Behind an instruction, two tokens fewer, as the pipeline counts."""
        instructed = bool(options.arguments().get("complex_human_instruction"))
        return super().window(pipe, options) - (2 if instructed else 0)

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """Of the text as the pipeline cleans it."""
        clean = bool(options.arguments().get("clean_caption"))
        (cleaned,) = pipe._text_preprocessing(text, clean_caption=clean)
        return super().count_tokens(pipe, cleaned, options)
