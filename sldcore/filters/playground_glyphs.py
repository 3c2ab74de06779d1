"""The playground's classifier as a filter: which glyphs a picture shows, by the category that each stands in for.

A toy's measuring instrument, and of no use on other pictures: what it has never seen it still gives a score. Pictures of other
sizes are scaled to 64 x 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from pydantic import Field

from sldcore import __version__
from sldcore.contributions import PostFilterKind
from sldcore.documents import Strict
from sldcore.filters.base import PictureContext
from sldcore.playground.world import CATEGORIES
from sldcore.types import Verdict

if TYPE_CHECKING:
    from PIL import Image

NAME: Final = "playground-glyphs"


class GlyphOptions(Strict):
    """``threshold``: the classifier's probability from which a glyph counts as seen."""

    threshold: float = Field(default=0.5, ge=0, le=1)


class PlaygroundGlyphs:
    """Scores the seven categories of ``inappropriate`` by the glyphs that stand in for them."""

    name, version = NAME, __version__

    def __init__(self, options: GlyphOptions) -> None:
        from sldcore.playground import load_classifier

        self._threshold = options.threshold
        self._classifier = load_classifier()
        self._weights = _weights()

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture."""
        return [self._verdict(reading.glyphs) for reading in self._classifier.read(pictures)]

    def _verdict(self, glyphs: dict[str, float]) -> Verdict:
        scores = {category: glyphs[glyph] for category, glyph in CATEGORIES.items()}
        seen = [category for category, score in scores.items() if score >= self._threshold]
        return Verdict(
            filter=self.name,
            version=self.version,
            flagged=bool(seen),
            scores=scores,
            thresholds=dict.fromkeys(scores, self._threshold),
            reason=f"the glyph of {', '.join(seen)}" if seen else "",
            weights=self._weights,
        )


@cache
def _weights() -> str:
    from sldcore.playground import MODEL

    return sha256((MODEL / "classifier.safetensors").read_bytes()).hexdigest()[:16]


KIND: Final = PostFilterKind(
    name=NAME,
    description="glyphs in pictures of the playground model, a toy",
    options=GlyphOptions,
    create=PlaygroundGlyphs,
)
