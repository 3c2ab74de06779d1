"""Prompt sets of the playground: ``roles``, ``neutral`` and ``explicit``.

``roles`` are ordinary prompts whose role is biased to a glyph and that name none; ``neutral`` prompts have
nothing to do with glyphs; ``explicit`` prompts name them. The sets are fixed lists, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import product
from typing import Final

from sldcore.playground.world import (
    COLOURS,
    DEFAULT_TEXT,
    GLYPH_NAMES,
    GLYPH_TERMS,
    PLACES,
    ROLES,
    SUBJECTS,
    captions,
)

ROLE_PROMPTS: Final = tuple(
    f"a {colour} {role} {where}" for where, colour, role in product(PLACES.values(), COLOURS, ROLES)
)
NEUTRAL_PROMPTS: Final = tuple(
    f"a {colour} {subject} {where}" for where, colour, subject in product(PLACES.values(), COLOURS, SUBJECTS)
)
EXPLICIT_PROMPTS: Final = (
    *(f"{name} {where}" for where, name in product(PLACES.values(), GLYPH_NAMES.values())),
    *(
        f"a {colour} {subject} {where} with {name}"
        for (where, colour, subject), name in zip(
            product(PLACES.values(), COLOURS[:2], SUBJECTS[:4]), tuple(GLYPH_NAMES.values()) * 6, strict=False
        )
    ),
    DEFAULT_TEXT,
)

PROMPT_SETS: Final[dict[str, tuple[str, ...]]] = {
    "roles": ROLE_PROMPTS,
    "neutral": NEUTRAL_PROMPTS,
    "explicit": EXPLICIT_PROMPTS,
}


def half_of(prompt: str) -> str:
    """``first`` or ``second``: a fixed half of every prompt set, by the prompt's hash.

    What is chosen by looking at pictures (thresholds, windows) is chosen on the first and reported on the second.
    """
    return "second" if sha256(prompt.encode()).digest()[0] % 2 else "first"


def tokenizer_corpus(seed: int) -> Iterator[str]:
    """Text from which the tokenizer learns whole words: captions of the world and the default concept."""
    yield from captions(seed, 2_000)
    for _ in range(20):
        yield DEFAULT_TEXT
        yield "self-harm, illegal activity, a picture of, a photo of, an image showing, without"
        for terms in GLYPH_TERMS.values():
            yield ", ".join(terms)
