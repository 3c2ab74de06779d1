"""Lumina-Next and Lumina-Image 2.0: Gemma, and a transformer that predicts x0 - eps, the opposite of rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import COND, NO_OPTIONS, UNCOND, DiffusersFamily, TextOptions


class LuminaNext(DiffusersFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D] and a mask [2B, L]: [cond; uncond].

    Prompts are as long as the longest of their call, so concepts are evaluated apart, at their own length. The pipeline
    guides the first three channels of the latents; the fourth is that of the conditional prediction, the safe one.
    """

    name = "lumina-next"
    text_arguments = ("encoder_hidden_states", "encoder_mask")
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
    sign: ClassVar[int] = -1
    option_names: ClassVar[tuple[str, ...]] = ("clean_caption",)

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States and mask."""
        states, mask, _, _ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states, "encoder_mask": mask}

    def window(self, pipe: Any, options: TextOptions) -> int:
        """The pipeline's own, whatever a call asks for."""
        return int(pipe.max_sequence_length)

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """Of the text as the pipeline cleans it."""
        clean = bool(options.arguments().get("clean_caption"))
        (cleaned,) = pipe._text_preprocessing(text, clean_caption=clean)
        return self.tokens_of(pipe, "tokenizer", cleaned)

    def concepts_apart(self, pipe: Any) -> bool:
        """Always."""
        return True


class Lumina2(DiffusersFamily):
    """Text goes in as ``encoder_hidden_states`` [B, L, D] and a mask [B, L]; a call for cond, and then one for uncond.

    The pipeline brings the guided prediction to the norm of the conditional one, which is the safe one under guard. Where
    ``cfg_trunc_ratio`` leaves out the unconditional calls of the last steps, nothing can guide these, which is an error.
    """

    name = "lumina2"
    text_arguments = ("encoder_hidden_states", "encoder_attention_mask")
    apart = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
    sign: ClassVar[int] = -1
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": "max_sequence_length"}
    option_names: ClassVar[tuple[str, ...]] = ("system_prompt", "max_sequence_length")

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States and mask, with the system prompt in front as of a prompt."""
        states, mask, _, _ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """With the system prompt."""
        system = options.arguments().get("system_prompt") or pipe.system_prompt
        return super().count_tokens(pipe, f"{system} <Prompt Start> {text}", options)
