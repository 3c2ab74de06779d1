"""AuraFlow: T5, and a transformer that predicts rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from sldcore.families.base import DiffusersFamily


class AuraFlow(DiffusersFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D], zero where there is padding."""

    name = "auraflow"
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": "max_sequence_length"}
