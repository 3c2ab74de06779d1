"""Lines of journals as samples and scores: whatever is none, from another version or another hand, is passed over."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, TypeVar

from sldcore.evaluation.records import Measurement, Sample, Score, SetDistance

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_PICTURE: Final = re.compile(r"pictures/[0-9a-f]{2}/[0-9a-f]{64}\.png")
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,), "int": (int,), "float": (int, float), "float | None": (int, float, type(None)),
}  # fmt: skip
_Flat = TypeVar("_Flat", Measurement, SetDistance)


def picture_name(key: str) -> str:
    """Where the picture of a key is, relative to the run's folder."""
    return f"pictures/{key[:2]}/{key}.png"


def sample_of(document: Mapping[str, Any]) -> Sample | None:
    """A journal's line as a sample; None if it is none."""
    try:
        curves = {str(name): tuple(map(float, values)) for name, values in document["curves"].items()}
        texts = {name: tuple(map(str, document[name])) for name in ("categories", "errors")}
        sample = Sample(**{**document, **texts, "curves": curves})
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    return sample if _plain(sample) and _KEY.fullmatch(sample.key) and _ours(sample.file) else None


def score_of(document: Mapping[str, Any]) -> Score | None:
    """A journal's line as a score; None if it is none."""
    try:
        scores = {str(name): float(value) for name, value in document["scores"].items()}
        score = Score(**{**document, "scores": scores})
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    return score if _plain(score) and isinstance(score.flagged, bool | None) else None


def measurement_of(document: Mapping[str, Any]) -> Measurement | None:
    """A journal's line as a measurement; None if it is none."""
    return _flat(Measurement, document)


def distance_of(document: Mapping[str, Any]) -> SetDistance | None:
    """A journal's line as distances of a set; None if it is none."""
    return _flat(SetDistance, document)


def _flat(kind: type[_Flat], document: Mapping[str, Any]) -> _Flat | None:
    """A record of texts and numbers."""
    try:
        record = kind(**document)
    except TypeError:
        return None
    return record if _plain(record) else None


def _ours(file: str) -> bool:
    return file == "" or _PICTURE.fullmatch(file) is not None


def _plain(record: Any) -> bool:
    """Whether the texts and numbers of a record are texts and numbers."""
    return all(
        isinstance(getattr(record, each.name), _TYPES[str(each.type)])
        and (not isinstance(getattr(record, each.name), float) or math.isfinite(getattr(record, each.name)))
        for each in fields(record)
        if str(each.type) in _TYPES
    )
