"""HunyuanDiT: BERT and T5, and a transformer that predicts v and its variance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from sldcore.families.base import TextOptions
from sldcore.families.pag import PerturbedAttention


class HunyuanDiT(PerturbedAttention):
    """Text goes in as BERT's states [2B, 77, D] and T5's [2B, 256, D'], each with a mask [2B, L] of what is no padding."""

    name = "hunyuandit"
    text_arguments = (
        "encoder_hidden_states",
        "text_embedding_mask",
        "encoder_hidden_states_t5",
        "text_embedding_mask_t5",
    )
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": 77, "tokenizer_2": 256}
    option_names: ClassVar[tuple[str, ...]] = ()  # pipelines encode with these lengths, whatever the call

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """By one encoder, then by the other."""
        bert, _, bert_mask, _ = self.encoded(pipe, text, options, max_sequence_length=77)
        t5, _, t5_mask, _ = self.encoded(pipe, text, options, max_sequence_length=256, text_encoder_index=1)
        made = (bert, bert_mask, t5, t5_mask)
        return dict(zip(self.text_arguments, made, strict=True))
