"""HiDream-I1: two CLIP text encoders, T5 and Llama, and a transformer that predicts x0 - eps."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import DiffusersFamily, TextOptions

_LLAMA = "encoder_hidden_states_llama3"


class HiDream(DiffusersFamily):
    """Text goes in as T5's states [2B, L, D], Llama's [layers, 2B, L, D] and CLIP's ``pooled_embeds`` [2B, D'].

    Because rows are not in front in Llama's states, concepts are evaluated in a call of their own.
    """

    name = "hidream"
    text_arguments = ("encoder_hidden_states_t5", _LLAMA, "pooled_embeds")
    sign: ClassVar[int] = -1
    tokenizers: ClassVar[Mapping[str, int | str | None]] = dict.fromkeys(
        ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4"), "max_sequence_length"
    )

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """The same text for all encoders; Llama's states as [1, layers, L, D]."""
        others = {"prompt_2": None, "prompt_3": None, "prompt_4": None}
        t5, _, llama, _, pooled, _ = self.encoded(pipe, text, options, **others)
        return {"encoder_hidden_states_t5": t5, _LLAMA: llama.transpose(0, 1), "pooled_embeds": pooled}

    def placed(self, texts: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Llama's layers in front."""
        return {**texts, _LLAMA: texts[_LLAMA].transpose(0, 1)}

    def concepts_apart(self, pipe: Any) -> bool:
        """Always."""
        return True

    def picture_size(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """The pipeline keeps the proportions that a call asks for, and makes all pictures of about one area."""
        side = int(pipe.default_sample_size * pipe.vae_scale_factor)
        height, width = (int(arguments.get(name) or side) for name in ("height", "width"))
        unit, scale = pipe.vae_scale_factor * 2, sqrt(side * side / (height * width))
        return int(height * scale // unit * unit), int(width * scale // unit * unit)
