"""Published figures beside those of a run, with a warning wherever their protocols differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from sldcore.evaluation.expected_maximum import Maximum
from sldcore.evaluation.published import MODEL_CARD, Protocol, Published, differences, published
from sldcore.evaluation.reporting.evaluated import Evaluated, described
from sldcore.evaluation.reporting.rates import OVERALL, Column, Rates
from sldcore.evaluation.reporting.rendering import Table
from sldcore.evaluation.reporting.summary import Summary
from sldcore.evaluation.reporting.tables import NOTHING

PUBLISHED: Final = "published"
"""Stands for the table that most reports want, the model card's."""

_MODELS: Final = {
    "CompVis/stable-diffusion-v1-4": "Stable Diffusion 1.4",
    "compvis/stable-diffusion-v1-4": "Stable Diffusion 1.4",
}
"""Names of models as the published tables have them."""


def beside(evaluation: Evaluated, summary: Summary, against: str) -> tuple[Table, ...]:
    """The published table beside each table of the run that has one of its methods.

    Args:
        evaluation: The run.
        summary: Its numbers.
        against: ``published``, or the name of a published table.

    Raises:
        ConfigurationError: there is no such table.
    """
    theirs = MODEL_CARD if against == PUBLISHED else published(against)
    tables = [
        _beside(theirs, rates, protocol_of(evaluation, rates))
        for rates in summary.rates
        if not rates.benchmark.neutral
    ]
    return tuple(table for table in tables if table)


def protocol_of(evaluation: Evaluated, rates: Rates) -> Protocol:
    """How the figures of one table of a run were measured."""
    found = evaluation.description.get("settings")
    settings: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    entries = {entry.get("name"): entry for entry in described(evaluation.description, "benchmarks")}
    model = settings.get("model")
    scale = settings.get("guidance_scale")
    return Protocol(
        benchmark=rates.benchmark.name,
        prompts=entries.get(rates.benchmark.name, {}).get("items"),
        pictures_per_prompt=settings.get("images"),
        model=None if model is None else _MODELS.get(str(model), str(model)),
        detector=rates.instrument.name,
        guidance_scale=None if scale is None or settings.get("own_guidance") else float(scale),
        steps=settings.get("steps"),
        scheduler=settings.get("scheduler"),
    )


def _beside(theirs: Published, rates: Rates, protocol: Protocol) -> Table | None:
    methods = [method for method in theirs.methods if method in rates.columns]
    if not methods:
        return None
    head = [f"{method}, {whose}" for method in methods for whose in ("here", "published")]
    rows = [
        (
            row,
            *(
                cell
                for method in methods
                for cell in (_ours(theirs, rates, row, method), _theirs(theirs, row, method))
            ),
        )
        for row in theirs.rows
    ]
    title = f"{theirs.title}: {rates.benchmark.name} by {rates.instrument.label} beside the {theirs.source}"
    unlike = differences(theirs, protocol)
    warning = f"Not measured alike, so not to be compared directly: {'; '.join(unlike)}." if unlike else ""
    note = f"Unit: {theirs.unit}. {theirs.note[:1].upper()}{theirs.note[1:]}{'. ' if theirs.note else ''}"
    return Table(title, (theirs.metric, *head), tuple(rows), note.strip(), warning=warning)


def _theirs(theirs: Published, row: str, method: str) -> str:
    value, spread = theirs.values[row].get(method), theirs.spreads.get(row, {}).get(method)
    if value is None:
        return NOTHING
    said = f"{value:.2f}" if theirs.unit == "share" else f"{value:g}"
    return said if spread is None else f"{said} ± {spread:g}"


def _ours(theirs: Published, rates: Rates, row: str, method: str) -> str:
    value, spread = _number(theirs.metric, rates, row, rates.columns[method])
    factor = 100 if theirs.unit == "%" else 1
    if not math.isfinite(value):
        return NOTHING
    places = 1 if factor == 100 else 3
    error = f" ± {factor * spread:.{places}f}" if math.isfinite(spread) else ""
    return f"{factor * value:.{places}f}{error}"


def _number(metric: str, rates: Rates, row: str, column: Column) -> Maximum:
    """What the run has in place of a published figure, and what stands after its ±; NaN if it has no such number."""
    if metric == "ip":
        rate = column.overall if row == OVERALL else column.categories.get(row)
        return Maximum(rate.value, rate.error) if rate else _UNKNOWN
    if metric == "expected maximum" and row == OVERALL:
        return column.maximum
    if metric == "attack success" and row == rates.benchmark.name:
        return Maximum(column.prompts.value, column.prompts.error)
    return _UNKNOWN


_UNKNOWN: Final = Maximum(math.nan, math.nan)
