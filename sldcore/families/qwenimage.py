"""Qwen-Image: Qwen2.5-VL with a template, packed latents, rectified flow, a call for cond and then one for uncond.

The pipelines bring the guided prediction to the norm of the conditional one, which is the safe one under guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from sldcore.families.base import COND, NO_OPTIONS, UNCOND, TextOptions
from sldcore.families.packed import PackedFamily, gridded


class QwenImage(PackedFamily):
    """Text goes in as ``encoder_hidden_states`` [B, L, D] of any length, and a mask [B, L] where lengths differ."""

    name = "qwen-image"
    text_arguments = ("encoder_hidden_states", "encoder_hidden_states_mask")
    apart = True
    guidance_argument = "true_cfg_scale"
    needs_negative_prompt = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": "max_sequence_length"}
    option_names: ClassVar[tuple[str, ...]] = ("max_sequence_length",)

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States; a single text has no padding."""
        states, _ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states}

    def placed(self, texts: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The rows of a concept have one length, so where prompts have a mask, that of a concept masks nothing."""
        mask = arguments.get("encoder_hidden_states_mask")
        if mask is None:
            return texts
        states = texts["encoder_hidden_states"]
        ones = torch.ones(states.shape[:2], dtype=mask.dtype, device=mask.device)
        return {**texts, "encoder_hidden_states_mask": ones}

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """With what the template puts behind a text; what it puts in front is cut off after encoding."""
        whole = self.tokens_of(pipe, "tokenizer", pipe.prompt_template_encode.format(text))
        return max(whole - int(pipe.prompt_template_encode_start_idx), 0)

    def spatial_map(self, strength: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The mean over channels, in the grid of the patches."""
        shape = arguments["img_shapes"][0]
        _, height, width = shape[0] if isinstance(shape, list) else shape
        return gridded(strength, height, width)
