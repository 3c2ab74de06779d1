"""IP per category and method, by one detector on one benchmark.

Pictures without a verdict never count as safe: errors of the detector are counted beside the rates, and pictures that were not scored
yet as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sldcore.evaluation.estimates import Estimate, Rate
from sldcore.evaluation.expected_maximum import Maximum, expected_maximum, prompt_rates
from sldcore.evaluation.metrics import attack_success, by_category, ip
from sldcore.evaluation.paired import holm, mcnemar, paired_difference
from sldcore.evaluation.pairing import pairs
from sldcore.evaluation.records import Benchmark, Sample, Score
from sldcore.evaluation.reporting.evaluated import Instrument

OVERALL: Final = "overall"
"""What the row of all categories together is called."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a detector says of one method on one benchmark.

    ``drop`` is IP of the baseline minus that of the method over the pictures that both have, ``p`` McNemar's for it, corrected by
    Holm for all methods of the table; None for the baseline. ``unscored`` pictures have no verdict yet.
    """

    categories: Mapping[str, Rate]
    overall: Rate
    maximum: Maximum
    prompts: Rate
    unscored: int
    drop: Estimate | None
    p: float | None


@dataclass(frozen=True, slots=True)
class Rates:
    """One table of the report: categories by methods, for one benchmark and one detector."""

    benchmark: Benchmark
    instrument: Instrument
    categories: tuple[str, ...]
    columns: Mapping[str, Column]


def rates_of(
    benchmark: Benchmark,
    instrument: Instrument,
    cells: Mapping[str, Sequence[Sample]],
    baseline: str,
    verdicts: Mapping[str, Score],
) -> Rates:
    """The table of a benchmark; ``cells`` are the samples of each method on it, ``verdicts`` the detector's by key."""
    seen = dict.fromkeys(
        name for samples in cells.values() for sample in samples for name in sample.categories
    )
    categories = benchmark.categories or tuple(seen)
    before = cells.get(baseline, ())
    others = [method for method in cells if method != baseline]
    changes = {method: _flag_pairs(before, cells[method], verdicts) for method in others}
    p_values = dict(
        zip(
            others, holm([mcnemar(*changes[m]).p if changes[m][2] else math.nan for m in others]), strict=True
        )
    )
    columns = {}
    for method, samples in cells.items():
        judged = _judged(samples, verdicts)
        flags, prompts = [_number(verdicts[s.key]) for s in judged], [s.prompt for s in judged]
        columns[method] = Column(
            by_category(flags, prompts, [s.categories for s in judged], categories),
            ip(flags, prompts),
            expected_maximum(prompt_rates(flags, prompts)),
            attack_success(flags, prompts),
            sum(not sample.errors for sample in samples) - len(judged),
            paired_difference(*changes[method]) if method in changes else None,
            float(p_values[method]) if method in changes else None,
        )
    return Rates(benchmark, instrument, categories, columns)


def _judged(samples: Iterable[Sample], verdicts: Mapping[str, Score]) -> list[Sample]:
    """Samples that the detector looked at, also those at which it failed."""
    return [sample for sample in samples if not sample.errors and sample.key in verdicts]


def _number(score: Score) -> float:
    """A verdict for the metrics: 1, 0, or NaN where the detector failed."""
    return math.nan if score.flagged is None else float(score.flagged)


def _flag_pairs(
    before: Sequence[Sample], after: Sequence[Sample], verdicts: Mapping[str, Score]
) -> tuple[list[float], list[float], list[str]]:
    """Verdicts on the same pictures by two methods, and their prompts."""
    both = list(pairs(_judged(before, verdicts), _judged(after, verdicts)))
    first, second = ([_number(verdicts[pair[i].key]) for pair in both] for i in (0, 1))
    return first, second, [sample.prompt for _, sample in both]
