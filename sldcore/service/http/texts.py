"""Texts of clients: prompts to make pictures from, and texts to review."""

from __future__ import annotations

import unicodedata

from sldcore.service.http.errors import invalid


def checked_text(text: str, most: int, param: str) -> str:
    """The text as it is, if it can be a prompt: not empty, not too long, and without control characters but line feeds and tabs.

    Raises:
        ServiceError: 400.
    """
    if len(text) > most:
        message = f"{param} has {len(text):,} characters, and at most {most:,} are allowed"
        raise invalid(message, param, "string_above_max_length")
    if not text.strip():
        raise invalid(f"{param} is empty", param, "empty_string")
    for at, each in enumerate(text):
        if unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\t":
            kind = "half a character (a lone surrogate)" if each >= "\ud800" else "a control character"
            message = f"{param} has {kind} (U+{ord(each):04X}) at character {at}, which is not allowed"
            raise invalid(message, param, "invalid_characters")
    return text
