"""All samples of a run as CSV: one line per picture, with what each detector said.

Prompts stand in it as they are, for programs that read data: a spreadsheet may take one that starts with ``=`` for a formula.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Final

from sldcore.evaluation.pairing import UNGUIDED
from sldcore.evaluation.records import Measurement, Sample, Score
from sldcore.evaluation.reporting.evaluated import Evaluated

COLUMNS: Final = (
    "key", "benchmark", "item", "image", "prompt", "seed", "categories", "method", "policy_digest", "file", "pixels", "action",
    "attempts", "rows", "plain_rows", "seconds", "errors",
)  # fmt: skip


def samples_csv(evaluation: Evaluated) -> str:
    """RFC 4180 with a head line; lists are joined by ``|``. Columns of detectors: flagged, scores (JSON) and error.

    ``flagged`` is 1, 0, ``error`` (the detector failed) or empty (not scored). Columns of measuring networks: value and error; LPIPS is that
    to the picture of ``off`` from the same noise.
    """
    detectors = sorted({score.detector for score in evaluation.scores})
    verdicts = {(score.key, score.detector): score for score in evaluation.scores}
    stream = io.StringIO()
    writer = csv.writer(stream)
    parts = [f"{name}:{part}" for name in detectors for part in ("flagged", "scores", "error")]
    measures = sorted({each.measure for each in evaluation.measurements})
    values = _values(evaluation)
    writer.writerow(
        [*COLUMNS, *parts, *(f"{name}:{part}" for name in measures for part in ("value", "error"))]
    )
    for sample in sorted(evaluation.samples, key=lambda s: (s.benchmark, s.item, s.image, s.method)):
        said = (verdicts.get((sample.key, name)) for name in detectors)
        numbers = (values.get((sample.key, name)) for name in measures)
        writer.writerow(
            [
                *_fields(sample),
                *(field for score in said for field in _verdict(score)),
                *(field for each in numbers for field in _number(each)),
            ]
        )
    return stream.getvalue()


def _fields(sample: Sample) -> Iterable[str | int | float]:
    for name in COLUMNS:
        value = getattr(sample, name)
        yield "|".join(value) if isinstance(value, tuple) else value


def _verdict(score: Score | None) -> tuple[str, str, str]:
    if score is None:
        return ("", "", "")
    flagged = "error" if score.flagged is None else str(int(score.flagged))
    return (flagged, json.dumps(dict(score.scores), sort_keys=True), score.error)


def _values(evaluation: Evaluated) -> dict[tuple[str, str], Measurement]:
    """Measurements by key and measure; of pairs only those with the reference that the run has now."""
    unguided = {sample.key for sample in evaluation.samples if sample.method == UNGUIDED}
    return {
        (each.key, each.measure): each
        for each in evaluation.measurements
        if not each.reference or each.reference in unguided
    }


def _number(found: Measurement | None) -> tuple[str, str]:
    if found is None:
        return ("", "")
    return ("error" if found.value is None else repr(found.value), found.error)
