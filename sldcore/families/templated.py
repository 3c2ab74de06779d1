"""Ovis-Image, LongCat-Image and Bria 3: FLUX-like transformers with a language model, or T5 alone, for text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import COND, NO_OPTIONS, UNCOND, TextOptions
from sldcore.families.packed import PackedFamily


class OvisImage(PackedFamily):
    """Text goes in as ``encoder_hidden_states`` [B, L, D]; a call for cond, and then one for uncond."""

    name = "ovis-image"
    apart = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": "max_sequence_length"}

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """With what the chat template puts behind a text; what it puts in front is cut off after encoding."""
        (message,) = pipe._get_messages(text)
        tokens = pipe.tokenizer(message, truncation=False, add_special_tokens=False, verbose=False).input_ids
        return max(len(tokens) - int(pipe.user_prompt_begin_id), 0)


class LongCatImage(PackedFamily):
    """Text goes in as ``encoder_hidden_states`` [B, L, D]; a call for cond, and then one for uncond.

    The pipeline may bring the guided prediction to the norm of the conditional one, which is the safe one under guard. It
    may rewrite prompts before it encodes them; concepts are taken at their word.
    """

    name = "longcat-image"
    apart = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States of a fixed length."""
        states, _ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states}

    def window(self, pipe: Any, options: TextOptions) -> int:
        """The pipeline's own, template excluded."""
        return int(pipe.tokenizer_max_length)

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """Without the template; the letters of what stands in quotes are tokens of their own."""
        from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation

        pieces = [piece for part, quoted in split_quotation(text) for piece in (part if quoted else [part])]
        return sum(
            len(pipe.tokenizer(piece, add_special_tokens=False, verbose=False).input_ids) for piece in pieces
        )


class Bria(PackedFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D], zero where there is padding."""

    name = "bria"
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": "max_sequence_length"}
