"""FLUX.1 with ``true_cfg_scale``, and Chroma: packed latents, rectified flow, a call for cond and then one for uncond.

FLUX.1 is distilled: its ``guidance_scale`` is an input of the transformer, which makes no unconditional prediction. What
guides is ``true_cfg_scale``, and it needs a negative prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from sldcore.families.base import COND, UNCOND, TextOptions
from sldcore.families.packed import PackedFamily


class Flux(PackedFamily):
    """Text goes in as T5's ``encoder_hidden_states`` [B, L, D] and CLIP's ``pooled_projections`` [B, D']."""

    name = "flux"
    text_arguments = ("encoder_hidden_states", "pooled_projections")
    apart = True
    guidance_argument = "true_cfg_scale"
    needs_negative_prompt = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {
        "tokenizer": None,
        "tokenizer_2": "max_sequence_length",
    }

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """The same text for both encoders."""
        states, pooled, _ = self.encoded(pipe, text, options, prompt_2=None)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}


class Chroma(PackedFamily):
    """Text goes in as ``encoder_hidden_states`` [B, L, D] and a mask [B, L + H*W] of text and picture."""

    name = "chroma"
    text_arguments = ("encoder_hidden_states", "attention_mask")
    apart = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": "max_sequence_length"}

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States and the mask of the text."""
        states, _, mask, *_ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states, "attention_mask": mask}

    def placed(self, texts: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The mask goes on over the picture, none of which is padding."""
        mask = texts["attention_mask"]
        picture = mask.new_ones(len(mask), arguments[self.latents_argument].shape[1])
        return {**texts, "attention_mask": torch.cat([mask, picture], dim=1)}
