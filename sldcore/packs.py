"""Concept packs as data: the model of a pack's file, its YAML and its JSON schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from sldcore.documents import Strict, describe_invalid, parse_mapping, to_yaml
from sldcore.embeddings import PackEmbedding
from sldcore.errors import ConceptError, listed, nearest
from sldcore.policy_parts import Number
from sldcore.splitting import cover, terms_of
from sldcore.types import Concept


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


Text = Annotated[str, AfterValidator(_one_line)]
Name = Annotated[Text, AfterValidator(_not_empty)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")]


# Pydantic's own minimum counts valid parts only, and would report a wrong part twice.
_AT_LEAST_ONE: Final = Field(json_schema_extra={"minItems": 1})


class PackConcept(Strict):
    """One concept of a pack. Give ``terms``, ``text`` or both; each is made from the other if it is missing.

    ``text`` stands without the pack's prefix. ``terms`` are the parts at which it may be split. ``weight`` scales the
    safety term and ``strength`` the guidance method's own scale. With an ``embedding``, the text only says what that
    stands for, and pipelines of other families refuse the concept.
    """

    id: Identifier
    text: Text = ""
    terms: tuple[Text, ...] = ()
    weight: Number = Field(default=1.0, ge=0)
    strength: Number = Field(default=1.0, gt=0)
    description: Text = ""
    embedding: PackEmbedding | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_and_terms(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        terms, text = data.get("terms"), data.get("text")
        if (
            isinstance(terms, list | tuple)
            and terms
            and not text
            and all(isinstance(term, str) for term in terms)
        ):
            return {**data, "text": ", ".join(terms)}
        if isinstance(text, str) and not terms:
            return {**data, "terms": terms_of(text)}
        return data

    @model_validator(mode="after")
    def _terms_make_text(self) -> Self:
        if not self.text or not self.terms or not all(self.terms):
            raise ValueError(f"concept '{self.id}' has an empty text or term; give 'terms' or 'text'")
        if not cover(self.terms, self.text):
            raise ValueError(
                f"the terms of concept '{self.id}' must make up its text, each once and in order"
            )
        return self


class ConceptPack(Strict):
    """A set of safety concepts as data.

    ``text`` is the whole pack as one concept, without ``prefix``; the concepts' texts joined if it is not given.
    ``culture`` says which culture, tradition, country or setting the pack is written for, ``setting`` and ``limits``
    what it is meant for and what it cannot do.
    """

    id: Identifier
    version: Name
    title: Name
    languages: Annotated[tuple[Language, ...], _AT_LEAST_ONE] = ("en",)
    culture: Text = ""
    setting: Text = ""
    prefix: Text = ""
    text: Text = ""
    concepts: Annotated[tuple[PackConcept, ...], _AT_LEAST_ONE]
    sources: tuple[Name, ...] = ()
    licence: Name
    limits: Text = ""

    @field_validator("languages", "concepts")
    @classmethod
    def _not_none(cls, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        if not parts:
            raise ValueError("give at least one")
        return parts

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [concept.id for concept in self.concepts]
        if twice := {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"concept ids given twice: {listed(twice)}")
        return self

    @classmethod
    def parse(cls, text: str, source: str = "pack", folder: Path | None = None) -> ConceptPack:
        """Read a pack from YAML text. ``source`` is what messages call it, ``folder`` where its embeddings lie.

        Raises:
            ConceptError: the text is not plain YAML, or not a pack, or an embedding is not what the pack says.
        """
        content = parse_mapping(text, source=source, error=ConceptError)
        try:
            return cls.model_validate(content, context={"folder": folder})
        except ValidationError as invalid:
            raise ConceptError(describe_invalid(source, invalid)) from None

    def dump(self) -> str:
        """The pack as YAML text that ``parse`` reads back equal."""
        return to_yaml(self.model_dump(mode="json", exclude_defaults=True))

    def whole(self) -> Concept:
        """The pack's text as one concept, whose id is the pack's."""
        text = self.text or ", ".join(concept.text for concept in self.concepts)
        return Concept(self.id, self._full(text), self.prefix, terms_of(text), 1.0, self.title)

    def concept(self, name: str) -> Concept:
        """One concept, whose id is ``pack/name``.

        Raises:
            ConceptError: The pack has no concept of this name.
        """
        for found in self.concepts:
            if found.id == name:
                return Concept(
                    id=f"{self.id}/{name}",
                    text=self._full(found.text),
                    prefix=self.prefix,
                    terms=found.terms,
                    weight=found.weight,
                    description=found.description,
                    strength=found.strength,
                    embedding=found.embedding.located() if found.embedding else None,
                )
        names = [concept.id for concept in self.concepts]
        raise ConceptError(
            f"pack '{self.id}' has no concept '{name}'{nearest(name, names)} (available: {listed(names)}, "
            f"all of them as '{self.id}/*')"
        )

    def _full(self, text: str) -> str:
        return f"{self.prefix} {text}" if self.prefix else text


def pack_schema() -> dict[str, Any]:
    """The JSON schema of pack files; ``concepts/schema.json`` is this."""
    schema = ConceptPack.model_json_schema()
    schema["$defs"]["PackConcept"]["anyOf"] = [{"required": ["terms"]}, {"required": ["text"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
