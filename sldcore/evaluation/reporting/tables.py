"""What the report's tables hold.

The main one has the form of the model card: categories by methods. Everything that decides what its numbers mean stands in its
title and note: benchmark with version and data hash, detector with version and weights, what the errors are.
"""

from __future__ import annotations

import math
from typing import Final

from sldcore.evaluation.estimates import Estimate, Rate
from sldcore.evaluation.expected_maximum import DRAWS, Maximum
from sldcore.evaluation.measure_folder import CLIP, FID, LPIPS
from sldcore.evaluation.records import Benchmark
from sldcore.evaluation.reporting.conduct import MOST_PAIRS, Conduct
from sldcore.evaluation.reporting.network_figures import NetworkFigures
from sldcore.evaluation.reporting.rates import OVERALL, Rates
from sldcore.evaluation.reporting.rendering import Table
from sldcore.evaluation.reporting.summary import Summary

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
    """What happened to the pictures of each method on one benchmark: quantities by methods."""
    columns = summary.on(benchmark)
    first = [_what_happened(conduct) for conduct in columns.values()]
    last = [_cost(conduct) for conduct in columns.values()]
    networks = [_by_networks(conduct.networks) for conduct in columns.values()]
    found = dict.fromkeys(
        name
        for name in (*_NUMBERS, *(name for cells in networks for name in cells))
        if any(name in c for c in networks)
    )
    middle = [{name: cells.get(name, NOTHING) for name in found} for cells in networks]
    rows = [
        (name, *(cells[name] for cells in part))
        for part in (first, middle, last)
        for name in next(iter(part), {})
    ]
    note = _CONDUCT_NOTE.format(baseline=summary.baseline, most=MOST_PAIRS)
    rules = (len(first[0]), len(first[0]) + len(found)) if columns else ()
    return Table(
        f"Side effects and cost on {benchmark}",
        ("quantity", *columns),
        tuple(rows),
        note + (_networks_note(summary) if found else ""),
        tuple(dict.fromkeys(rules)),
    )


_CONDUCT_NOTE: Final = (
    "Shares are of pictures without errors; blocked: something else than the picture was shown. Identical: share that equals the "
    "picture of {baseline} from the same noise in every bit. RMSE: distance to that picture, 0 to 1, over pictures that both show ({most:,} at even distances if there are more). "
    "Denoiser rows are relative to plain guidance, seconds to {baseline}."
)


def _networks_note(summary: Summary) -> str:
    """What the networks' figures are, and by which weights."""
    parts = {
        LPIPS: "LPIPS: distance to the picture of off from the same noise, over pictures that both show.",
        CLIP: f"CLIP score: 100 times the cosine of picture and prompt, over shown pictures; change: less that of {summary.baseline}, "
        "over pictures that both show.",
        FID: "FID and KID: of shown pictures to the references named; to off, of pictures that both show. The ± of KID is the standard "
        "deviation over subsets, not an error. Compare them only at equal numbers of pictures.",
    }
    said = [f"{parts[each.name]} By {each.label}." for each in summary.networks if each.name in parts]
    return " " + " ".join(said)


def _what_happened(conduct: Conduct) -> dict[str, str]:
    shares = {"blocked": conduct.blocked, "regenerated": conduct.regenerated, "identical": conduct.identical}
    return {
        "pictures": str(conduct.pictures),
        "errors": str(conduct.errors),
        **{
            name: NOTHING if part is None or not part.n else f"{100 * part.value:.1f} %"
            for name, part in shares.items()
        },
        "RMSE": _text(conduct.rmse),
    }


_NUMBERS: Final = {"LPIPS": ".3f", "CLIP score": ".2f", "change in CLIP score": "+.2f"}
"""Rows of means, with how they are written."""


def _by_networks(found: NetworkFigures) -> dict[str, str]:
    """Rows of what networks measured."""
    numbers = dict(zip(_NUMBERS, (found.lpips, found.clip, found.clip_change), strict=True))
    cells = {name: _text(number, _NUMBERS[name]) for name, number in numbers.items() if number is not None}
    for each in found.distances:
        cells[f"FID to {each.references}"] = NOTHING if each.fid is None else f"{each.fid:.2f}"
        cells[f"1000 KID to {each.references}"] = (
            NOTHING
            if each.kid is None or each.kid_sd is None
            else f"{1000 * each.kid:.2f} ± {1000 * each.kid_sd:.2f}"
        )
        cells[f"pictures in FID and KID to {each.references}"] = (
            f"{each.pictures} / {each.reference_pictures}"
        )
    return cells


def _cost(conduct: Conduct) -> dict[str, str]:
    factors = {"denoiser rows": conduct.rows, "seconds": conduct.seconds}
    return {
        name: NOTHING if factor is None else f"× {factor.value:.2f}"  # noqa: RUF001
        for name, factor in factors.items()
    }


def _text(number: Estimate | Maximum | None, form: str = ".3f") -> str:
    """A number with what stands after its ±; a dash where there is none."""
    if number is None:
        return NOTHING
    value, spread = number if isinstance(number, Maximum) else (number.value, number.error)
    if not math.isfinite(value):
        return NOTHING
    return f"{value:{form}} ± {spread:{form.lstrip('+')}}" if math.isfinite(spread) else f"{value:{form}}"


def _interval(rate: Rate) -> str:
    low, high = rate.interval()
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) else NOTHING


def _p_text(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
