"""Concept packs: reading, resolving what a policy uses, and splitting texts to the text encoder's window.

A pack is one YAML file of data: a text for the whole pack, and concepts that can be used one by one. Packs that come
with sldcore are named by their id; any other is read from its path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from sldcore.documents import Strict, describe_invalid, read_mapping
from sldcore.errors import ConceptError, listed, nearest
from sldcore.policy import ConceptUse
from sldcore.types import Concept

_INSTALLED: Final = Path(__file__).with_name("concepts_data")
_CHECKOUT: Final = Path(__file__).parent.parent / "concepts"

_SEPARATOR: Final = re.compile(r"[,;]")


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


Text = Annotated[str, AfterValidator(_one_line)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class PackConcept(Strict):
    """One concept of a pack. Give ``terms``, ``text`` or both; each is made from the other if it is missing.

    ``text`` stands without the pack's prefix. ``terms`` are the parts at which it may be split.
    """

    id: Identifier
    text: Text = ""
    terms: tuple[Text, ...] = ()
    weight: float = Field(default=1.0, ge=0)
    description: Text = ""

    @model_validator(mode="before")
    @classmethod
    def _text_and_terms(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        terms, text = data.get("terms"), data.get("text")
        if terms and not text and all(isinstance(term, str) for term in terms):
            return {**data, "text": ", ".join(terms)}
        if isinstance(text, str) and not terms:
            return {**data, "terms": _terms_of(text)}
        return data

    @model_validator(mode="after")
    def _terms_make_text(self) -> Self:
        if not self.text or not all(self.terms):
            raise ValueError(f"concept '{self.id}' has an empty text or term; give 'terms' or 'text'")
        if not _cover(self.terms, self.text):
            raise ValueError(
                f"the terms of concept '{self.id}' must make up its text, each once and in order"
            )
        return self


class ConceptPack(Strict):
    """A set of safety concepts as data.

    ``text`` is the whole pack as one concept, without ``prefix``; the concepts' texts joined if it is not given.
    ``setting`` and ``limits`` say what the pack is meant for and what it cannot do.
    """

    id: Identifier
    version: str
    title: Text
    languages: tuple[str, ...] = ("en",)
    setting: Text = ""
    prefix: Text = ""
    text: Text = ""
    concepts: tuple[PackConcept, ...] = Field(min_length=1)
    sources: tuple[Text, ...] = ()
    licence: str
    limits: Text = ""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [concept.id for concept in self.concepts]
        if twice := {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"concept ids given twice: {listed(twice)}")
        return self

    def whole(self) -> Concept:
        """The pack as one concept, whose id is the pack's."""
        text = self.text or ", ".join(concept.text for concept in self.concepts)
        return Concept(self.id, self._full(text), self.prefix, _terms_of(text), 1.0, self.title)

    def concept(self, name: str) -> Concept:
        """One concept, whose id is ``pack/name``.

        Raises:
            ConceptError: The pack has no concept of this name.
        """
        for found in self.concepts:
            if found.id == name:
                text, terms = self._full(found.text), found.terms
                return Concept(f"{self.id}/{name}", text, self.prefix, terms, found.weight, found.description)
        names = [concept.id for concept in self.concepts]
        raise ConceptError(
            f"pack '{self.id}' has no concept '{name}'{nearest(name, names)} (available: {listed(names)}, "
            f"all of them as '{self.id}/*')"
        )

    def _full(self, text: str) -> str:
        return f"{self.prefix} {text}" if self.prefix else text


def pack_ids() -> tuple[str, ...]:
    """The ids of the packs that come with sldcore, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def load_pack(id_or_path: str | os.PathLike[str]) -> ConceptPack:
    """Read a pack: one that comes with sldcore by its id, any other by the path of its ``.yaml`` file.

    Raises:
        ConceptError: There is no such pack, or it is malformed.
    """
    name = os.fspath(id_or_path)
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return _read_pack(Path(name))
    if name not in pack_ids():
        raise ConceptError(
            f"unknown concept pack '{name}'{nearest(name, pack_ids())} (available: {listed(pack_ids())}); "
            "a pack of your own is named by the path of its .yaml file"
        )
    return _shipped_pack(name)


def resolve(uses: Sequence[ConceptUse]) -> tuple[Concept, ...]:
    """The concepts that a policy uses, in its order; of two with the same text and prefix, the first.

    Raises:
        ConceptError: A pack or concept that is not available.
    """
    found: dict[tuple[str, str], Concept] = {}
    for use in uses:
        for concept in _concepts_of(use):
            found.setdefault((concept.text, concept.prefix), concept)
    return tuple(found.values())


def split_to_window(concept: Concept, count_tokens: Callable[[str], int], window: int) -> tuple[str, ...]:
    """The concept's text as one or more texts that fit a text encoder, split at term borders, prefix in front of each.

    Args:
        concept: Split at its ``terms``, or at commas and semicolons if it has none.
        count_tokens: Tokens of a text, begin and end tokens included.
        window: The most tokens that the text encoder takes, begin and end tokens included.

    Raises:
        ConceptError: A single term is too long, or the terms do not make up the text. Nothing is ever truncated.
    """
    if count_tokens(concept.text) <= window:
        return (concept.text,)
    body = concept.text.removeprefix(concept.prefix).strip()
    terms = concept.terms or _terms_of(body)
    if not _cover(terms, body):
        raise ConceptError(
            f"concept '{concept.id}' is longer than the text encoder's window of {window} tokens and cannot be split: "
            "its terms must make up its text, each once and in order"
        )
    parts: list[str] = []
    for term in terms:
        grown = f"{parts[-1]}, {term}" if parts else ""
        if grown and count_tokens(grown) <= window:
            parts[-1] = grown
            continue
        part = f"{concept.prefix} {term}" if concept.prefix else term
        if (tokens := count_tokens(part)) > window:
            raise ConceptError(
                f"concept '{concept.id}': the term '{term:.60}' takes {tokens} tokens with its prefix and the text "
                f"encoder's window is {window}; shorten it, or divide it with commas"
            )
        parts.append(part)
    return tuple(parts)


def _concepts_of(use: ConceptUse) -> tuple[Concept, ...]:
    if use.text is not None:
        text = f"{use.prefix} {use.text}" if use.prefix else use.text
        return (Concept(_text_id(text), text, use.prefix, (), use.weight),)
    pack_name, _, name = (use.use or "").partition("/")
    pack = load_pack(pack_name)
    if not name:
        concepts = [pack.whole()]
    else:
        names = [concept.id for concept in pack.concepts] if name == "*" else [name]
        concepts = [pack.concept(each) for each in names]
    return tuple(replace(concept, weight=concept.weight * use.weight) for concept in concepts)


def _text_id(text: str) -> str:
    # Readable, and the same for the same text only: policies of one batch may bring several texts of their own.
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24].rstrip("-")
    return f"custom/{slug}-{sha256(text.encode()).hexdigest()[:8]}".replace("/-", "/")


def _terms_of(text: str) -> tuple[str, ...]:
    return tuple(term.strip() for term in _SEPARATOR.split(text) if term.strip())


def _cover(terms: Sequence[str], text: str) -> bool:
    words = re.compile(r"[^\s,;]+")
    return [word for term in terms for word in words.findall(term)] == words.findall(text)


def _folder() -> Path:
    """The packs of the installed wheel, or those of the checkout that this package is imported from."""
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


@cache
def _shipped_pack(name: str) -> ConceptPack:
    return _read_pack(_folder() / f"{name}.yaml")


def _read_pack(path: Path) -> ConceptPack:
    content = read_mapping(path, error=ConceptError)
    try:
        return ConceptPack.model_validate(content)
    except ValidationError as invalid:
        raise ConceptError(describe_invalid(str(path), invalid)) from None


def pack_schema() -> dict[str, Any]:
    """The JSON schema of pack files; ``concepts/schema.json`` is this."""
    schema = ConceptPack.model_json_schema()
    schema["$defs"]["PackConcept"]["anyOf"] = [{"required": ["terms"]}, {"required": ["text"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
