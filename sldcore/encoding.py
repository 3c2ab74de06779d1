"""From policies to the concept rows of a run: resolved, split to the encoder's window, encoded once.

Encoded texts are kept for as long as the encoder that made them is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sldcore.concepts import resolve, split_to_window
from sldcore.errors import ConceptError
from sldcore.families.base import Family, TextOptions
from sldcore.policy import SafetyPolicy
from sldcore.types import Concept, Row


@dataclass(frozen=True, slots=True)
class ConceptRow:
    """One text that a run may evaluate: a concept, or a part of one that is longer than the window."""

    id: str
    concept: str
    text: str


@dataclass(frozen=True, slots=True)
class RunConcepts:
    """The concept rows of a run and what each policy uses of them.

    ``used[policy]`` are (row, weight) pairs; ``arguments`` are the denoiser's text arguments, [K, ...] each.
    """

    rows: tuple[ConceptRow, ...]
    used: Mapping[SafetyPolicy, tuple[tuple[int, float], ...]]
    arguments: Mapping[str, Tensor]

    def texts_of(self, policy: SafetyPolicy) -> dict[str, tuple[str, ...]]:
        """Concept id to the texts that stand for it in ``policy``."""
        texts: dict[str, tuple[str, ...]] = {}
        for index, _ in self.used[policy]:
            row = self.rows[index]
            texts[row.concept] = (*texts.get(row.concept, ()), row.text)
        return texts

    def for_rows(self, rows: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
        """The text arguments of some rows, [R, ...] each."""
        chosen = [row.concept for row in rows]
        if len(set(chosen)) == 1:
            only = chosen[0]
            return {
                name: value[only : only + 1].expand(len(chosen), *value.shape[1:])
                for name, value in self.arguments.items()
            }
        index = torch.tensor(chosen, device=device)
        return {name: value.to(device).index_select(0, index) for name, value in self.arguments.items()}


class ConceptEncoder:
    """Prepares the concepts of policies for one pipeline and remembers encoded texts."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self._pipe = pipe
        self._family = family
        self._state: tuple[Any, ...] | None = None
        self._parts: dict[Concept, tuple[str, ...]] = {}
        self._encoded: dict[tuple[str, TextOptions], Mapping[str, Tensor]] = {}

    def prepare(self, policies: Sequence[SafetyPolicy], options: TextOptions) -> RunConcepts:
        """Resolve, split and encode what ``policies`` name.

        Raises:
            ConceptError: a concept is unknown, or has a term that does not fit the text encoder.
        """
        self._forget_if_changed()
        rows: dict[str, ConceptRow] = {}
        used: dict[SafetyPolicy, tuple[tuple[int, float], ...]] = {}
        for policy in dict.fromkeys(policies):
            weights: dict[int, float] = {}
            for concept in resolve(policy.concepts):
                parts = self._split(concept)
                for number, text in enumerate(parts, 1):
                    name = concept.id if len(parts) == 1 else f"{concept.id}#{number}"
                    rows.setdefault(text, ConceptRow(name, concept.id, text))
                    weights.setdefault(list(rows).index(text), concept.weight)  # a shared text is one row
            used[policy] = tuple(weights.items())
        return RunConcepts(tuple(rows.values()), used, self._encode(list(rows), options))

    def _forget_if_changed(self) -> None:
        state = self._family.encoder_state(self._pipe)
        if state != self._state:
            self._parts.clear()
            self._encoded.clear()
            self._state = state

    def _split(self, concept: Concept) -> tuple[str, ...]:
        if concept not in self._parts:

            def count(text: str) -> int:
                return self._family.count_tokens(self._pipe, text)

            self._parts[concept] = split_to_window(concept, count, self._family.window(self._pipe))
        return self._parts[concept]

    def _encode(self, texts: Sequence[str], options: TextOptions) -> Mapping[str, Tensor]:
        for text in texts:
            if (text, options) not in self._encoded:
                encoded = self._family.encode(self._pipe, [text], options)
                if not all(bool(value.isfinite().all()) for value in encoded.values()):
                    raise ConceptError(
                        f"the text encoder gives NaN or Inf for the concept text {text!r}; check its weights"
                    )
                self._encoded[text, options] = encoded
        parts = [self._encoded[text, options] for text in texts]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
