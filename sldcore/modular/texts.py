"""Concept texts in a modular pipeline: encoded by its own text blocks, exactly as it encodes a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from sldcore.errors import UnsupportedPipelineError, listed
from sldcore.families.base import NO_OPTIONS, DiffusersFamily, TextOptions
from sldcore.modular import api
from sldcore.modular.tokenizing import PROBE, Watching, Window

_NOT_OPTIONS: Final = ("prompt", "negative", "num_")
"""Beginnings of the names of a text block's inputs that are texts, or counts of pictures, and no options."""

Encode = Callable[[Any, str, Mapping[str, Any]], Mapping[str, Any]]


class _Held:
    """An option that may be a dictionary or a picture: equal where its JSON is, or where it is the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value
        try:
            self._key: Any = json.dumps(value, sort_keys=True)
        except (TypeError, ValueError):
            self._key = id(value)  # the object is kept alive here, so that the number stays its own

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class ModularTexts(DiffusersFamily):
    """What :class:`sldcore.encoding.ConceptEncoder` must know of a pipeline, of whatever architecture.

    A text becomes what the pipeline's text block puts into the state for a prompt: ``prompt_embeds``, masks, pooled texts,
    each with one row. Text blocks that read pictures too can be run only as part of a call.
    """

    def __init__(self, pipe: Any) -> None:
        self.name = f"modular-{api.model_name(pipe)}"
        self._block = api.text_block(pipe)
        self._windows_of: dict[TextOptions, Window] = {}

    def needs_a_call(self) -> bool:
        """Does the text block read more than text, such as a picture, so that concepts cannot be encoded beforehand?"""
        return bool(api.required_inputs(self._block) - {"prompt"})

    def options(self, inputs: Mapping[str, Any]) -> TextOptions:
        """How a call encodes text whose text block reads ``inputs``."""
        defaults = api.block_inputs(self._block)
        return TextOptions.of(
            {
                name: _Held(value)
                for name, value in inputs.items()
                if name in defaults and value is not None and not name.startswith(_NOT_OPTIONS)
                if isinstance(value, Tensor) or value != defaults[name]
            }
        )

    def window(self, pipe: Any, options: TextOptions) -> int:
        """As the text block cuts."""
        return self._window(pipe, options).size

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """As the text block's tokenizers count."""
        return self._window(pipe, options).count(text)

    def encode(self, pipe: Any, texts: Sequence[str], options: TextOptions) -> list[Mapping[str, Tensor]]:
        """Each text alone, by the names that the text block gives its results.

        Raises:
            UnsupportedPipelineError: the text block gives nothing for a prompt.
        """
        with torch.no_grad():
            return [self._encoded(pipe, text, options) for text in texts]

    def _encoded(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        made = api.run_block(pipe, self._block, self._inputs(text, options))
        rows = {name: _row(value) for name, value in made.items() if not name.startswith("negative")}
        found = {name: value for name, value in rows.items() if value is not None}
        if not found:
            raise UnsupportedPipelineError(
                f"the text block {type(self._block).__name__} gives no tensors for a prompt, only {listed(made)}"
            )
        return found

    def _inputs(self, text: str, options: TextOptions) -> dict[str, Any]:
        given = {name: held.value for name, held in options.given}
        return {**api.block_inputs(self._block), **given, "prompt": text}

    def _window(self, pipe: Any, options: TextOptions) -> Window:
        if options not in self._windows_of:
            watching = Watching(pipe)
            inputs = self._inputs(PROBE, options)
            with torch.no_grad():
                api.run_block(watching, self._block, inputs)
            kept = inputs.get("max_sequence_length")
            self._windows_of[options] = Window(watching.seen, kept, type(pipe).__name__)
        return self._windows_of[options]


def _row(value: Any) -> Tensor | None:
    """One text's row of a text block's result, [1, ...]; None if it is no tensor."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Tensor):
        return value[0].unsqueeze(0)
    return value if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1 else None
