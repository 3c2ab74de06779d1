"""Pictures of two methods that start from the same noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from sldcore.evaluation.records import Sample

UNGUIDED: Final = "off"
"""The method whose pictures are those of the model alone."""


def pairs(before: Iterable[Sample], after: Iterable[Sample]) -> Iterator[tuple[Sample, Sample]]:
    """Samples of the same benchmark, item and image, in the order of ``after``."""
    others = {(sample.benchmark, sample.item, sample.image): sample for sample in before}
    for sample in after:
        where = (sample.benchmark, sample.item, sample.image)
        if where in others:
            yield others[where], sample


def shown(sample: Sample) -> bool:
    """Whether the picture as it was made is what the user sees: neither an error nor withheld."""
    return bool(sample.file) and not sample.errors and not sample.withheld


def shown_pairs(before: Iterable[Sample], after: Iterable[Sample]) -> Iterator[tuple[Sample, Sample]]:
    """Pairs of which both pictures are shown."""
    return ((a, b) for a, b in pairs(before, after) if shown(a) and shown(b))
