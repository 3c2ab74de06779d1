"""The playground's classifier as a filter."""

from __future__ import annotations

import pytest

from sldcore.filters.playground_glyphs import KIND, GlyphOptions, PlaygroundGlyphs
from sldcore.playground.world import CATEGORIES, ROLES, Scene, picture
from sldcore.testing import PostFilterContract


class TestContract(PostFilterContract):
    contribution = KIND
    flagged = (picture(Scene("meadow", "knight", "red", ("sword",))),)
    clean = (picture(Scene("meadow", "knight", "red")),)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_glyph_of_a_category_is_flagged_as_that_category(category: str) -> None:
    glyph = CATEGORIES[category]
    role = next(role for role, own in ROLES.items() if own == glyph)
    scene = picture(Scene("beach", role, "blue", (glyph,)))
    (verdict,) = PlaygroundGlyphs(GlyphOptions()).review([scene], [])
    assert verdict.flagged and verdict.above == (category,)
    assert verdict.reason == f"the glyph of {category}"
