"""Splitting a concept's text to the text encoder's window, at the borders of its terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from sldcore.errors import ConceptError
from sldcore.types import Concept

_SEPARATORS: Final = ",;\uff0c\uff1b\u3001\u060c\u061b"
"""Comma and semicolon, and the full-width, ideographic and Arabic ones."""

_SEPARATOR: Final = re.compile(f"[{_SEPARATORS}]")
_WORD: Final = re.compile(rf"[^\s{_SEPARATORS}]+")


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
    terms = concept.terms or terms_of(body)
    if not cover(terms, body):
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


def terms_of(text: str) -> tuple[str, ...]:
    """The parts of a text between its commas and semicolons."""
    return tuple(term.strip() for term in _SEPARATOR.split(text) if term.strip())


def cover(terms: Sequence[str], text: str) -> bool:
    """Whether ``terms`` make up ``text``, each word once and in order."""
    return [word for term in terms for word in _WORD.findall(term)] == _WORD.findall(text)
