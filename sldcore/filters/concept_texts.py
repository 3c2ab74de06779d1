"""Which concepts a filter looks for in a picture: those that guided it, or those that the filter's own options name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pydantic import Field, ValidationError

from sldcore.concepts import resolve
from sldcore.documents import describe_invalid
from sldcore.errors import ConceptError
from sldcore.filters.base import PictureContext
from sldcore.filters.local_models import LocalModelOptions
from sldcore.policy_parts import ConceptUse
from sldcore.types import Concept

_OPENING: Final = re.compile(
    r"(an?|the) (image|picture|photo|photograph) (showing|of|depicting|with)\s+", re.IGNORECASE
)


class ConceptOptions(LocalModelOptions):
    """Options of detectors that look for concepts by their texts."""

    concepts: str = Field(
        "",
        examples=["inappropriate/*"],
        description="what to look for, named as in a policy and separated by commas; by default what guided the picture",
    )
    threshold: float = Field(0.5, ge=0, le=1, description="score from which a concept flags")


def named_concepts(names: str) -> dict[str, tuple[Concept, ...]]:
    """The concepts of a comma list by id; none if the list is empty.

    Raises:
        ConceptError: a name is malformed, or names nothing that is available.
        PluginError: a pack cannot be had.
    """
    listed = [name.strip() for name in names.split(",") if name.strip()]
    if not listed:
        return {}
    try:
        use = ConceptUse.model_validate({"use": listed})
    except ValidationError as invalid:
        raise ConceptError(describe_invalid(f"concepts '{names}'", invalid)) from None
    return {used.concept.id: (used.concept,) for used in resolve([use])}


def concepts_for(
    context: PictureContext, own: Mapping[str, tuple[Concept, ...]]
) -> Mapping[str, tuple[Concept, ...]]:
    """The concepts to look for in one picture, by id; several for one id are parts of its text.

    Args:
        context: The picture's.
        own: What ``named_concepts`` made of the filter's options.

    Raises:
        ValueError: no concept guided the picture and the options name none, so there is nothing to look for.
    """
    if own:
        return own
    if not context.concepts:
        raise ValueError(
            "no concept guided this picture and the option 'concepts' names none, so there is nothing to look for; name "
            "some, for example 'inappropriate/*'"
        )
    return {name: tuple(Concept(name, text) for text in texts) for name, texts in context.concepts.items()}


def content_of(parts: tuple[Concept, ...]) -> str:
    """What a concept is about, in one line: its parts without "an image showing" in front of each."""
    bodies = [_without_opening(part.text.removeprefix(part.prefix).strip()) for part in parts]
    content = ", ".join(body for body in bodies if body) or ", ".join(part.text for part in parts)
    return " ".join(content.split())


def _without_opening(text: str) -> str:
    opening = _OPENING.match(text)
    return text[opening.end() :] if opening else text
