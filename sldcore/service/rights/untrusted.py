"""Documents from strangers: how large and deep they may be, and what their texts may hold, before anything reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sldcore.errors import PolicyError

MOST_PARTS: Final = 1000
"""Keys and values of all kinds that a document may have."""
MOST_CHARACTERS: Final = 2000
MOST_DEPTH: Final = 12


def require_small(content: Mapping[str, Any]) -> None:
    """Refuse documents that are too large, too deep, or hold texts that are no texts, before anything else looks at them.

    Raises:
        PolicyError: it is one.
    """
    for count, (value, depth) in enumerate(_walk(content)):
        if count > MOST_PARTS:
            raise PolicyError(f"policy: more than {MOST_PARTS} values; a policy of a request is smaller")
        if depth > MOST_DEPTH:
            raise PolicyError(f"policy: nested more than {MOST_DEPTH} levels deep")
        if isinstance(value, str):
            _require_text(value)


def _walk(content: Mapping[str, Any]) -> Iterator[tuple[Any, int]]:
    """Every value and key of a document, and how deep it is."""
    left: list[tuple[Any, int]] = [(content, 0)]
    while left:
        value, depth = left.pop()
        yield value, depth
        if isinstance(value, Mapping):
            left.extend((part, depth + 1) for pair in value.items() for part in pair)
        elif isinstance(value, list | tuple):
            left.extend((part, depth + 1) for part in value)


def _require_text(text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise PolicyError(
            f"policy: a text of {len(text):,} characters, and at most {MOST_CHARACTERS:,} are read"
        )
    if any(ord(mark) < 32 or "\ud800" <= mark <= "\udfff" for mark in text):
        raise PolicyError(f"policy: {text!r:.80} has characters that no text has")
