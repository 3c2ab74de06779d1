"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5, a transformer that predicts rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import TextOptions
from sldcore.families.pag import PerturbedAttention


class StableDiffusion3(PerturbedAttention):
    """Text goes in as ``encoder_hidden_states`` [2B, 77 + L, D], CLIP's before T5's, and ``pooled_projections`` [2B, D']."""

    name = "stable-diffusion-3"
    text_arguments = ("encoder_hidden_states", "pooled_projections")
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {
        "tokenizer": None,
        "tokenizer_2": None,
        "tokenizer_3": "max_sequence_length",
    }
    option_names: ClassVar[tuple[str, ...]] = ("clip_skip", "max_sequence_length", "lora_scale")

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """The same text for all encoders."""
        states, _, pooled, _ = self.encoded(pipe, text, options, prompt_2=None, prompt_3=None)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def is_aside(self, arguments: Mapping[str, Any]) -> bool:
        """Skip-layer guidance: B conditional rows with layers left out; the pipeline compares them with c'."""
        return arguments.get("skip_layers") is not None
