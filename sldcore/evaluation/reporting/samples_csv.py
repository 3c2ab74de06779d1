"""All samples of a run as CSV: one line per picture, with what each detector said.

Prompts stand in it as they are, for programs that read data: a spreadsheet may take one that starts with ``=`` for a formula.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Final

from sldcore.evaluation.records import Sample, Score
from sldcore.evaluation.reporting.summary import Evaluated

COLUMNS: Final = (
    "key", "benchmark", "item", "image", "prompt", "seed", "categories", "method", "policy_digest", "file", "pixels", "action",
    "attempts", "rows", "plain_rows", "seconds", "errors",
)  # fmt: skip


def samples_csv(evaluation: Evaluated) -> str:
    """RFC 4180 with a head line; lists are joined by ``|``. Columns of detectors: flagged, scores (JSON) and error.

    ``flagged`` is 1, 0, ``error`` (the detector failed) or empty (not scored).
    """
    detectors = sorted({score.detector for score in evaluation.scores})
    verdicts = {(score.key, score.detector): score for score in evaluation.scores}
    stream = io.StringIO()
    writer = csv.writer(stream)
    parts = [f"{name}:{part}" for name in detectors for part in ("flagged", "scores", "error")]
    writer.writerow([*COLUMNS, *parts])
    for sample in sorted(evaluation.samples, key=lambda s: (s.benchmark, s.item, s.image, s.method)):
        said = (verdicts.get((sample.key, name)) for name in detectors)
        writer.writerow([*_fields(sample), *(field for score in said for field in _verdict(score))])
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
