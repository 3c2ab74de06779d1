"""What the report's tables hold.

The main one has the form of the model card: categories by methods. Everything that decides what its numbers mean stands in its
title and note: benchmark with version and data hash, detector with version and weights, what the errors are.
"""

from __future__ import annotations

import math
from typing import Final

from sldcore.evaluation.estimates import Estimate, Rate
from sldcore.evaluation.expected_maximum import DRAWS, Maximum
from sldcore.evaluation.records import Benchmark
from sldcore.evaluation.reporting.rendering import Table
from sldcore.evaluation.reporting.summary import MOST_PAIRS, OVERALL, Conduct, Rates, Summary

NOTHING: Final = "–"  # noqa: RUF001
"""What stands in a cell for which there is no number."""


def identity(benchmark: Benchmark) -> str:
    """A benchmark with what makes its numbers its own."""
    return f"{benchmark.name} (version {benchmark.version}, data {benchmark.data_hash})"


def tables(summary: Summary) -> tuple[Table, ...]:
    """All tables of a run: IP per benchmark and detector, then what happened to the pictures."""
    rates = [rate_table(summary, rates) for rates in summary.rates]
    names = dict.fromkeys(benchmark for benchmark, _ in summary.conduct)
    return (*rates, *(conduct_table(summary, name) for name in names))


def rate_table(summary: Summary, rates: Rates) -> Table:
    """IP in categories by methods, as on the model card."""
    columns = rates.columns.values()
    rows = [(name, *(_text(column.categories[name]) for column in columns)) for name in rates.categories]
    rows += [
        (OVERALL, *(_text(column.overall) for column in columns)),
        ("95 % interval", *(_interval(column.overall) for column in columns)),
        (f"drop from {summary.baseline}", *(_text(column.drop, "+.3f") for column in columns)),
        ("p", *(_p_text(column.p) for column in columns)),
        (f"expected maximum of {DRAWS} prompts", *(_text(column.maximum) for column in columns)),
        ("prompts with a flagged picture", *(_text(column.prompts) for column in columns)),
        ("pictures in the rates", *(str(column.overall.n) for column in columns)),
        ("prompts", *(str(column.overall.clusters) for column in columns)),
        ("detector errors", *(str(column.overall.failed) for column in columns)),
        ("not scored", *(str(column.unscored) for column in columns)),
    ]
    title = f"Inappropriate probability (IP) on {identity(rates.benchmark)} by {rates.instrument.label}"
    note = _RATE_NOTE.format(baseline=summary.baseline) + (_NEUTRAL_NOTE if rates.benchmark.neutral else "")
    start = len(rates.categories)
    rules = (start, start + 2, start + 6) if start else (2, 6)
    return Table(title, ("category", *rates.columns), tuple(rows), note, rules)


_RATE_NOTE: Final = (
    "Share of pictures that the detector flags ± one standard error, clustered by prompt. A prompt counts in each of its categories. "
    "Detector errors and pictures that are not scored are in no rate. An error of 0 at a share of 0 or 1 is no certainty: the interval "
    "(Wilson's) says what is. p: McNemar's test against {baseline}, corrected for the number of "
    "methods (Holm). The ± of the expected maximum is the spread of the maximum, not an error."
)
_NEUTRAL_NOTE: Final = " The benchmark is neutral: whatever is flagged is a false alarm or was brought in."


def conduct_table(summary: Summary, benchmark: str) -> Table:
    """What happened to the pictures of each method on one benchmark: methods by quantities."""
    head = (
        "method", "pictures", "errors", "blocked", "regenerated", "identical", "RMSE", "denoiser rows", "seconds",
    )  # fmt: skip
    rows = tuple((method, *_conduct_cells(conduct)) for method, conduct in summary.on(benchmark).items())
    return Table(
        f"Side effects and cost on {benchmark}",
        head,
        rows,
        _CONDUCT_NOTE.format(baseline=summary.baseline, most=MOST_PAIRS),
    )


_CONDUCT_NOTE: Final = (
    "Shares are of pictures without errors; blocked: something else than the picture was shown. Identical: share that equals the "
    "picture of {baseline} from the same noise in every bit. RMSE: distance to that picture, 0 to 1, over pictures that both show ({most:,} at even distances if there are more). "
    "Denoiser rows are relative to plain guidance, seconds to {baseline}."
)


def _conduct_cells(conduct: Conduct) -> tuple[str, ...]:
    shares = (conduct.blocked, conduct.regenerated, conduct.identical)
    factors = (conduct.rows, conduct.seconds)
    return (
        str(conduct.pictures),
        str(conduct.errors),
        *(NOTHING if part is None or not part.n else f"{100 * part.value:.1f} %" for part in shares),
        _text(conduct.rmse),
        *(NOTHING if factor is None else f"× {factor.value:.2f}" for factor in factors),  # noqa: RUF001
    )


def _text(number: Estimate | Maximum | None, form: str = ".3f") -> str:
    """A number with what stands after its ±; a dash where there is none."""
    if number is None:
        return NOTHING
    value, spread = number if isinstance(number, Maximum) else (number.value, number.error)
    if not math.isfinite(value):
        return NOTHING
    return f"{value:{form}} ± {spread:.3f}" if math.isfinite(spread) else f"{value:{form}}"


def _interval(rate: Rate) -> str:
    low, high = rate.interval()
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) else NOTHING


def _p_text(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
