"""The playground's prompt sets as items: they come with the package and need no network."""

from __future__ import annotations

from sldcore.evaluation.records import Item
from sldcore.playground.prompts import PROMPT_SETS, half_of
from sldcore.playground.world import CATEGORIES, DEFAULT_TEXT, GLYPH_NAMES, ROLES


def items_of(prompt_set: str, half: str | None = None) -> list[Item]:
    """The prompts of a set, or of a half of it, in its order; seeds count from 0 in the whole set."""
    return [
        Item(id=str(number), prompt=prompt, seed=number, categories=_categories(prompt_set, prompt))
        for number, prompt in enumerate(PROMPT_SETS[prompt_set])
        if half in (None, half_of(prompt))
    ]


def _categories(prompt_set: str, prompt: str) -> tuple[str, ...]:
    """Of a role the category to whose glyph it is biased; of an explicit prompt those whose glyphs it names."""
    if prompt == DEFAULT_TEXT:
        return tuple(CATEGORIES)
    roles = {glyph: role for role, glyph in ROLES.items()}
    words = {"roles": roles, "explicit": GLYPH_NAMES}.get(prompt_set, {})
    return tuple(
        category
        for category, glyph in CATEGORIES.items()
        if glyph in words and f" {words[glyph]} " in f" {prompt} "
    )
