"""From policies to the concept rows of a run: resolved, split to the encoder's window, encoded once.

Encoded texts are kept for as long as the encoder that made them is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sldcore.catalogue import using
from sldcore.concepts import UsedConcept, resolve
from sldcore.embeddings import read_embedding
from sldcore.errors import ConceptError, listed
from sldcore.families.base import EncodesTokens, EncodesVectors, Family, TextOptions
from sldcore.policy import SafetyPolicy
from sldcore.policy_parts import Window
from sldcore.resolution import catalogue_for
from sldcore.splitting import split_to_window
from sldcore.types import Concept, ConceptEmbedding, Row


@dataclass(frozen=True, slots=True)
class ConceptRow:
    """One row that a run may evaluate: a concept, or a part of one that is longer than the window.

    ``embedding`` stands in place of ``text`` if there is one; ``prefix`` is what goes in front of its tokens.
    """

    id: str
    concept: str
    text: str
    prefix: str = ""
    embedding: ConceptEmbedding | None = None


@dataclass(frozen=True, slots=True)
class UsedRow:
    """What one policy makes of a row.

    ``weight`` scales its safety term, ``strength`` the method's own scale, and ``window`` says when it acts inside the
    window of the guidance.
    """

    row: int
    weight: float
    strength: float = 1.0
    window: Window | None = None
    concept: str = ""
    """The concept's id in this policy; another one may use the same text under another id."""
    name: str = field(default="", compare=False)
    """The same, with the number of the part if the concept is several rows."""


@dataclass(frozen=True, slots=True)
class RunConcepts:
    """The concept rows of a run and what each policy uses of them.

    ``arguments`` are the denoiser's text arguments for each of ``rows``, [1, ...] each; they need not be of one length.
    """

    rows: tuple[ConceptRow, ...]
    used: Mapping[SafetyPolicy, tuple[UsedRow, ...]]
    arguments: tuple[Mapping[str, Tensor], ...]
    probed: Mapping[SafetyPolicy, tuple[UsedRow, ...]] = field(default_factory=dict)
    """Rows that a policy's gate looks for, if these are others than those that it uses."""

    def texts_of(self, policy: SafetyPolicy) -> dict[str, tuple[str, ...]]:
        """Concept id to the texts that stand for it in ``policy``."""
        texts: dict[str, tuple[str, ...]] = {}
        for used in self.used[policy]:
            row = self.rows[used.row]
            name = used.concept or row.concept
            texts[name] = (*texts.get(name, ()), row.text)
        return texts

    def names_in(self, policy: SafetyPolicy) -> dict[int, str]:
        """What ``policy`` calls the rows that it uses or looks for, by their index."""
        return {
            used.row: used.name or self.rows[used.row].id
            for used in (*self.used[policy], *self.probed.get(policy, ()))
        }

    def for_rows(self, rows: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
        """The text arguments of some rows, [R, ...] each, on ``device``."""
        chosen = [self.arguments[row.concept] for row in rows]
        if len({row.concept for row in rows}) == 1:
            return {
                name: value.to(device).expand(len(rows), *value.shape[1:])
                for name, value in chosen[0].items()
            }
        return {name: torch.cat([each[name].to(device) for each in chosen]) for name in chosen[0]}


@dataclass(frozen=True, slots=True)
class _Source:
    """What a row is encoded from: a text, or an embedding with the prefix in front of its tokens."""

    text: str
    prefix: str = ""
    embedding: ConceptEmbedding | None = None


class ConceptEncoder:
    """Prepares the concepts of policies for one pipeline and remembers what it encoded."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self._pipe = pipe
        self._family = family
        self._state: tuple[Any, ...] | None = None
        self._parts: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._encoded: dict[tuple[_Source, TextOptions], Mapping[str, Tensor]] = {}

    def prepare(self, policies: Sequence[SafetyPolicy], options: TextOptions) -> RunConcepts:
        """Resolve, split and encode what ``policies`` name.

        Raises:
            ConceptError: a concept is unknown, has a term that does not fit the text encoder, or an embedding that does
                not fit the pipeline.
            PluginError: a pack cannot be had.
        """
        self._forget_if_changed()
        rows: dict[_Source, ConceptRow] = {}
        used: dict[SafetyPolicy, tuple[UsedRow, ...]] = {}
        probed: dict[SafetyPolicy, tuple[UsedRow, ...]] = {}
        for policy in dict.fromkeys(policies):
            with using(catalogue_for([policy])):
                used[policy] = self._rows(resolve(policy.concepts), rows, options)
                probed[policy] = self._rows(resolve(policy.probed), rows, options)
        return RunConcepts(tuple(rows.values()), used, self._encode(list(rows), options), probed)

    def _rows(
        self, concepts: Sequence[UsedConcept], rows: dict[_Source, ConceptRow], options: TextOptions
    ) -> tuple[UsedRow, ...]:
        """What one policy uses, with its rows added to ``rows``; a shared text is one row."""
        mine: dict[_Source, UsedRow] = {}
        for use in concepts:
            concept = use.concept
            sources = self._sources(concept, options)
            for number, source in enumerate(sources, 1):
                name = concept.id if len(sources) == 1 else f"{concept.id}#{number}"
                row = ConceptRow(name, concept.id, source.text, source.prefix, source.embedding)
                rows.setdefault(source, row)
                index = list(rows).index(source)
                used = UsedRow(index, concept.weight, concept.strength, use.window, concept.id, name)
                mine.setdefault(source, used)
        return tuple(mine.values())

    def _forget_if_changed(self) -> None:
        state = self._family.encoder_state(self._pipe)
        if state != self._state:
            self._parts.clear()
            self._encoded.clear()
            self._state = state

    def _sources(self, concept: Concept, options: TextOptions) -> tuple[_Source, ...]:
        if concept.embedding is not None:
            return (_Source(concept.text, concept.prefix, concept.embedding),)
        window = self._family.window(self._pipe, options)
        words = (concept.id, concept.text, concept.prefix, concept.terms, window)  # whatever its weight
        if words not in self._parts:

            def count(text: str) -> int:
                return self._family.count_tokens(self._pipe, text, options)

            self._parts[words] = split_to_window(concept, count, window)
        return tuple(_Source(text) for text in self._parts[words])

    def _encode(self, sources: Sequence[_Source], options: TextOptions) -> tuple[Mapping[str, Tensor], ...]:
        for source in sources:
            if (source, options) not in self._encoded:
                encoded = self._encode_one(source, options)
                if not all(bool(value.isfinite().all()) for value in encoded.values()):
                    raise ConceptError(
                        f"the text encoder gives NaN or Inf for the concept text {source.text!r}; check its weights"
                    )
                self._encoded[source, options] = encoded
        return tuple(self._encoded[source, options] for source in sources)

    def _encode_one(self, source: _Source, options: TextOptions) -> Mapping[str, Tensor]:
        """The text arguments of one row, [1, ...] each."""
        embedding, family = source.embedding, self._family
        if embedding is None:
            return family.encode(self._pipe, [source.text], options)[0]
        if embedding.family != family.name:
            raise ConceptError(
                f"the embedding {embedding.path.name} is made for family '{embedding.family}', and this pipeline is of "
                f"family '{family.name}'; use a concept that is a text, or a pipeline of that family"
            )
        tensors = read_embedding(embedding)
        if embedding.kind == "hidden-states":
            return _fitted(embedding, tensors, family.encode(self._pipe, [""], options)[0])
        if not isinstance(family, EncodesTokens):
            raise ConceptError(
                f"the embedding {embedding.path.name} holds tokens, which family '{family.name}' cannot encode; export it "
                f"as hidden-states"
            )
        (vectors,) = tensors.values()
        vectors = vectors.reshape(-1, embedding.width)
        return family.encode_tokens(self._pipe, source.prefix, vectors, options)


def _fitted(
    embedding: ConceptEmbedding, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Hidden states as text arguments of the shapes that the pipeline's own texts have, [1, L, D] or [1, D].

    Fewer states than the text encoder's window has are repeated, which leaves attention over them exactly as it is.

    Raises:
        ConceptError: other arguments than the pipeline's, another width, or states that do not divide the window.
    """
    if len(tensors) == len(like) == 1:
        tensors = dict(zip(like, tensors.values(), strict=True))
    if tensors.keys() != like.keys():
        raise ConceptError(
            f"{embedding.path.name} holds {listed(tensors)}, and a concept needs {listed(like)}: one tensor each"
        )
    fitted = {}
    for name, model in like.items():
        states = tensors[name].to(model).unsqueeze(0)
        times, rest = divmod(model.shape[1], states.shape[1]) if states.ndim == 3 else (1, 0)
        if states.ndim != model.ndim or states.shape[-1] != model.shape[-1] or rest:
            raise ConceptError(
                f"'{name}' of {embedding.path.name} is {list(states.shape[1:])}, and this pipeline takes "
                f"{list(model.shape[1:])}; the width must be the same, and the length may be a divisor"
            )
        fitted[name] = states.repeat(1, times, 1) if states.ndim == 3 else states
    return fitted


def text_vectors(family: Family, pipe: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    """One vector of length one per text, [len(texts), D], by the pipeline's own text encoder.

    Where the family knows of no vector for a whole text, the mean of the text's states.
    """
    if isinstance(family, EncodesVectors):
        vectors = family.text_vectors(pipe, texts)
    else:
        encoded = family.encode(pipe, texts, TextOptions())
        states = [next(iter(each.values())) for each in encoded]  # [1, L, D] or [1, D]
        vectors = torch.cat([each.mean(1) if each.ndim > 2 else each for each in states])
    normal = torch.nn.functional.normalize(vectors.float(), dim=1).cpu().numpy()
    return np.asarray(normal, dtype=np.float32)
