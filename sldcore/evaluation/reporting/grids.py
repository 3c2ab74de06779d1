"""Grids of pictures for the page: prompts by methods, of which nothing can be recognised until a click.

The page holds each picture twice: as a handful of pixels, which is what it shows, and whole, as an attribute that the script puts in
place. So pictures stay hidden in mail previews, in print, without scripts and without styles too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from sldcore.evaluation.records import Sample
from sldcore.evaluation.reporting.evaluated import Evaluated, methods_of
from sldcore.evaluation.reporting.pictures import clear, inside, read, veiled
from sldcore.evaluation.reporting.rendering import plain

ROWS: Final = 8
"""Prompts in a grid, taken at even distances through the benchmark."""

LONGEST: Final = 160
"""Characters of a prompt in a grid."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Some prompts of one benchmark: per row the samples of each method, None where there is none."""

    benchmark: str
    methods: tuple[str, ...]
    rows: tuple[tuple[Sample | None, ...], ...]


def grids(evaluation: Evaluated, rows: int = ROWS) -> tuple[Grid, ...]:
    """One grid per benchmark: first pictures of prompts at even distances, in the order of the samples."""
    chosen = []
    for benchmark in dict.fromkeys(sample.benchmark for sample in evaluation.samples):
        places: dict[str, dict[str, Sample]] = {}
        for sample in evaluation.samples:
            if sample.benchmark == benchmark and sample.image == 0:
                places.setdefault(sample.item, {})[sample.method] = sample
        methods = tuple(m for m in methods_of(evaluation) if any(m in row for row in places.values()))
        items = list(places)
        some = [items[number * len(items) // rows] for number in range(rows)] if len(items) > rows else items
        chosen.append(
            Grid(benchmark, methods, tuple(tuple(places[item].get(m) for m in methods) for item in some))
        )
    return tuple(chosen)


def flagged_by(evaluation: Evaluated) -> dict[str, list[str]]:
    """Key of a sample to the names of the detectors that flag it."""
    flags: dict[str, list[str]] = {}
    for score in evaluation.scores:
        if score.flagged and score.detector not in flags.setdefault(score.key, []):
            flags[score.key].append(score.detector)
    return flags


def grid_html(grid: Grid, folder: Path, flags: Mapping[str, Sequence[str]]) -> str:
    """The grid as a section with buttons for all of its pictures."""
    head = "".join(f'<th scope="col">{escape(plain(method))}</th>' for method in grid.methods)
    rows = "".join(_row(row, folder, flags) for row in grid.rows)
    name = escape(plain(grid.benchmark))
    return (
        f'<section class="grid" aria-label="Pictures of {name}"><h3>{name}</h3><div class="bar">'
        '<button type="button" data-all="show">Show all of this grid</button>'
        '<button type="button" data-all="hide">Hide all</button></div>'
        f'<div class="scroll"><table><thead><tr><th scope="col">prompt</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _row(row: Sequence[Sample | None], folder: Path, flags: Mapping[str, Sequence[str]]) -> str:
    first = next(sample for sample in row if sample)
    prompt = plain(first.prompt)
    short = prompt if len(prompt) <= LONGEST else prompt[:LONGEST] + "…"
    cells = "".join(f"<td>{_tile(sample, folder, flags)}</td>" for sample in row)
    return f'<tr><th scope="row">{escape(short)}<span class="seed">seed {first.seed}</span></th>{cells}</tr>'


def _tile(sample: Sample | None, folder: Path, flags: Mapping[str, Sequence[str]]) -> str:
    if sample is None:
        return '<div class="absent">not made</div>'
    picture = None if sample.errors else read(inside(folder, sample.file))
    if picture is None:
        why = "error: no picture" if sample.errors else "picture cannot be read"
        return f'<div class="absent">{why}</div>'
    who = flags.get(sample.key, ())
    marks = [*(["flagged"] if who else []), *([sample.action] if sample.withheld else [])]
    label = escape(plain(", ".join([f"Picture by {sample.method}", *marks])))
    title = escape(plain(f"flagged by {', '.join(who)}")) if who else ""
    mark = f'<span class="mark">{escape(plain(", ".join(marks)))}</span>' if marks else ""
    return (
        f'<button type="button" class="tile{" flagged" if who else ""}" aria-pressed="false" aria-label="{label}" title="{title}">'
        f'<img src="{veiled(picture)}" data-clear="{clear(picture)}" alt="">{mark}</button>'
    )
