"""Concept texts in classic pipelines that hand their predictions to a guider, as modular ones do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from sldcore.families.base import NO_OPTIONS, DiffusersFamily, TextOptions
from sldcore.modular.tokenizing import PROBE, Watching, Window

_NAMES: Final = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
"""What ``encode_prompt`` of all of them returns: states and mask, and those of the glyph encoder."""


class ClassicTexts(DiffusersFamily):
    """As :class:`sldcore.modular.texts.ModularTexts`, by the pipeline's ``encode_prompt``."""

    def __init__(self, pipe: Any) -> None:
        self.name = type(pipe).__name__
        self._window_of_text: Window | None = None

    def needs_a_call(self) -> bool:
        """It reads nothing but text."""
        return False

    def options(self, inputs: Mapping[str, Any]) -> TextOptions:
        """It takes none."""
        return NO_OPTIONS

    def window(self, pipe: Any, options: TextOptions) -> int:
        """As ``encode_prompt`` cuts."""
        return self._window(pipe).size

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """As the pipeline's tokenizers count."""
        return self._window(pipe).count(text)

    def encode(self, pipe: Any, texts: Sequence[str], options: TextOptions) -> list[Mapping[str, Tensor]]:
        """Each text alone."""
        with torch.no_grad():
            return [dict(zip(_NAMES, _encoded(pipe, text, pipe), strict=True)) for text in texts]

    def _window(self, pipe: Any) -> Window:
        if self._window_of_text is None:
            watching = Watching(pipe)
            with torch.no_grad():
                _encoded(pipe, PROBE, watching)
            self._window_of_text = Window(watching.seen, None, type(pipe).__name__)
        return self._window_of_text


def _encoded(pipe: Any, text: str, myself: Any) -> Any:
    return type(pipe).encode_prompt(myself, prompt=text, device=pipe._execution_device, batch_size=1)
