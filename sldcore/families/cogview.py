"""CogView: version 3 Plus with T5 and v-prediction, version 4 with GLM and rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from sldcore.families.base import COND, UNCOND, DiffusersFamily


class CogView3Plus(DiffusersFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D]."""

    name = "cogview3-plus"
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": "max_sequence_length"}


class CogView4(CogView3Plus):
    """Text goes in as ``encoder_hidden_states`` [B, L, D] of any length; a call for cond, and then one for uncond."""

    name = "cogview4"
    apart = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
