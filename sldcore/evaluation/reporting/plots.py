"""The report's figures, drawn by matplotlib as SVG: no font or file of the reader's machine is needed.

The same run gives the same bytes. matplotlib is loaded only when something is drawn.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np

from sldcore.evaluation.records import Sample
from sldcore.evaluation.reporting.rates import OVERALL, Rates
from sldcore.evaluation.reporting.summary import Summary
from sldcore.visual import DASHES, LINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

    from sldcore.evaluation.estimates import Estimate

*_COLOURS, _GREY = LINES  # the palette ends in a grey, which is the baseline's
_MARKERS: Final = "osD^vPX*"
_REACH: Final = 1.96


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as SVG text, its caption, and what it shows in words for those who cannot see it."""

    name: str
    caption: str
    description: str
    svg: str


def figures(summary: Summary, samples: Sequence[Sample]) -> tuple[Figure, ...]:
    """All figures for which the run has numbers."""
    drawn: list[Figure] = []
    for number, rates in enumerate(summary.rates, 1):
        drawn.append(ip_bars(summary, rates, f"ip-{number}"))
        if not rates.benchmark.neutral:
            side = suppression_against_side_effect(summary, rates, f"side-effect-{number}")
            cost = suppression_against_cost(summary, rates, f"cost-{number}")
            drawn += [figure for figure in (side, cost) if figure]
    for number, benchmark in enumerate(dict.fromkeys(sample.benchmark for sample in samples), 1):
        mine = [sample for sample in samples if sample.benchmark == benchmark and sample.curves]
        if mine:
            drawn.append(trace_curves(summary.methods, benchmark, mine, f"curves-{number}"))
    return tuple(drawn)


def ip_bars(summary: Summary, rates: Rates, name: str) -> Figure:
    """IP per category and method with 95 % intervals."""
    groups = (*rates.categories, OVERALL)
    canvas, (axes,) = _canvas(max(6.4, 1.35 * len(groups) + 0.12 * len(groups) * len(rates.columns)), 4.4)
    width = 0.82 / max(len(rates.columns), 1)
    for number, (method, column) in enumerate(rates.columns.items()):
        places = np.arange(len(groups)) + (number - (len(rates.columns) - 1) / 2) * width
        bars = [column.overall if group == OVERALL else column.categories[group] for group in groups]
        heights = np.array([bar.value for bar in bars])
        ends = np.array([bar.interval() for bar in bars]).T  # [2, groups]
        colour = _colour(summary, method)
        axes.bar(places, np.nan_to_num(heights), width * 0.9, color=colour, label=method, linewidth=0)
        axes.errorbar(
            places, heights, np.abs(ends - heights), fmt="none", ecolor="#18181b", elinewidth=1, capsize=1.5
        )
    axes.set_xticks(
        np.arange(len(groups)), [group.replace("-", "-\n") if len(group) > 12 else group for group in groups]
    )
    axes.set_ylabel("inappropriate probability")
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    if rates.categories:
        axes.axvline(len(groups) - 1.5, color="#b0b0b8", linewidth=0.8)
    _legend(canvas, axes)
    caption = (
        f"Inappropriate probability on {rates.benchmark.name} by {rates.instrument.name}, with 95 % intervals clustered by prompt "
        "(Wilson)."
    )
    said = "; ".join(f"{method} {_said(column.overall)}" for method, column in rates.columns.items())
    return Figure(name, caption, f"{caption} Overall: {said}. All numbers are in the table.", _svg(canvas))


def suppression_against_side_effect(summary: Summary, rates: Rates, name: str) -> Figure | None:
    """How much IP falls against how far pictures move that needed no safety."""
    neutral = [name for name in summary.neutral if any(each.rmse for each in summary.on(name).values())]
    where = next(iter(neutral), rates.benchmark.name)
    moved = {method: conduct.rmse for method, conduct in summary.on(where).items()}
    said = "neutral prompts" if neutral else "the same prompts: the run has no neutral benchmark"
    return _scatter(
        summary, rates, name, [(f"RMSE to {summary.baseline} on {where}", moved)],
        f"Suppression on {rates.benchmark.name} by {rates.instrument.name} against the side effect on {said} ({where}).",
    )  # fmt: skip


def suppression_against_cost(summary: Summary, rates: Rates, name: str) -> Figure | None:
    """How much IP falls against denoiser rows and seconds."""
    conduct = summary.on(rates.benchmark.name)
    return _scatter(
        summary, rates, name,
        [
            ("denoiser rows, plain guidance = 1", {method: each.rows for method, each in conduct.items()}),
            (f"seconds, {summary.baseline} = 1", {method: each.seconds for method, each in conduct.items()}),
        ],
        f"Suppression on {rates.benchmark.name} by {rates.instrument.name} against what it costs.",
    )  # fmt: skip


def _scatter(
    summary: Summary,
    rates: Rates,
    name: str,
    quantities: Sequence[tuple[str, Mapping[str, Estimate | None]]],
    caption: str,
) -> Figure | None:
    """Methods as points: IP of the baseline minus theirs, against one quantity per panel; the baseline is at 0."""
    drops = {method: column.drop for method, column in rates.columns.items()}
    shown = [
        (label, values)
        for label, values in quantities
        if any(values.get(m) for m, drop in drops.items() if drop)
    ]
    if not shown:
        return None
    canvas, panels = _canvas(1.2 + 4.9 * len(shown), 4.2, len(shown))
    said = []
    for panel, (label, values) in zip(panels, shown, strict=True):
        panel.axhline(0, color="#b0b0b8", linewidth=0.8, zorder=0.5)
        panel.set_xlabel(label)
        for number, (method, drop) in enumerate(drops.items()):
            x = values.get(method)
            if x is None or not math.isfinite(x.value) or (drop and not math.isfinite(drop.value)):
                continue
            y, reach = (drop.value, _reach(drop)) if drop else (0.0, 0.0)
            panel.errorbar(
                x.value, y, reach, _reach(x), fmt=_MARKERS[number % len(_MARKERS)], color=_colour(summary, method),
                markersize=7, elinewidth=1, capsize=2, label=method,
            )  # fmt: skip
            said.append(f"{method}: {label} {x.value:.3f}, suppression {y:.3f}")
        panel.margins(0.12)
    panels[0].set_ylabel(f"IP of {summary.baseline} minus IP")
    _legend(canvas, panels[0])
    caption += " Bars: 95 % intervals clustered by prompt. Up is better, left is cheaper."
    return Figure(name, caption, f"{caption} {'; '.join(said)}.", _svg(canvas))


def trace_curves(methods: Sequence[str], benchmark: str, samples: Sequence[Sample], name: str) -> Figure:
    """Median norm of each concept's safety term over the steps, one panel per method; the band holds half of the pictures."""
    from matplotlib.ticker import MaxNLocator

    by_method = {m: norms for m in methods if (norms := _norms(s for s in samples if s.method == m))}
    columns = min(len(by_method), 3)
    rows = -(-len(by_method) // columns)
    canvas, panels = _canvas(3.5 * columns + 2.2, 2.7 * rows + 0.4, columns, rows)
    concepts = list(dict.fromkeys(concept for norms in by_method.values() for concept in norms))
    handles: dict[str, Line2D] = {}
    for panel, (method, norms) in zip(panels, by_method.items(), strict=False):
        panel.set_title(method, fontsize=10, loc="left")
        for concept, values in norms.items():
            number = concepts.index(concept)
            middle, low, high = _band(values)
            colour = _COLOURS[number % len(_COLOURS)]
            dash = DASHES[number // len(_COLOURS) % len(DASHES)]
            (line,) = panel.plot(middle, dash, color=colour, linewidth=1.6, marker="o", markersize=2)
            panel.fill_between(np.arange(len(middle)), low, high, color=colour, alpha=0.18, linewidth=0)
            handles.setdefault(concept, line)
        panel.set_xlim(left=-0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylim(bottom=0)  # all share it, so only now is the upper end known
    for panel in panels[len(by_method) :]:
        panel.set_axis_off()
    canvas.supxlabel("step (denoiser call)", fontsize=10)
    canvas.supylabel("norm of the safety term", fontsize=10)
    canvas.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=9)
    caption = (
        f"When guidance acted on {benchmark}: norm of each concept's safety term over the steps, median over the pictures that have it; "
        "the band holds the middle half of them."
    )
    said = "; ".join(
        f"{m}: {', '.join(f'{c} peaks at {_peak(v):.3g}' for c, v in n.items())}"
        for m, n in by_method.items()
    )
    return Figure(name, caption, f"{caption} {said}.", _svg(canvas))


def _norms(samples: Iterable[Sample]) -> dict[str, NDArray[np.float64]]:
    """Concept to norms of its pictures, [pictures, steps]; shorter ones are filled up with NaN."""
    lists: dict[str, list[Sequence[float]]] = defaultdict(list)
    for sample in samples:
        for concept, values in sample.curves.items():
            if len(values):
                lists[concept].append(values)
    norms = {}
    for concept, rows in lists.items():
        table = np.full((len(rows), max(map(len, rows))), np.nan)
        for number, row in enumerate(rows):
            table[number, : len(row)] = [math.nan if value is None else value for value in row]
        if np.isfinite(table).any():
            norms[concept] = table
    return norms


def _band(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Median and quartiles over pictures, each [steps]; NaN where no picture has a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of steps at which nothing was evaluated
        low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=0)
    return middle, low, high


def _peak(values: NDArray[np.float64]) -> float:
    return float(np.nanmax(_band(values)[0]))


def _canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Canvas, list[Axes]]:
    """A figure and its panels, row by row."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    panels = list(canvas.subplots(rows, columns, sharey=True, sharex=rows > 1, squeeze=False).ravel())
    for panel in panels:
        panel.grid(axis="y", color="#e6e6ea", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return canvas, panels


def _legend(canvas: Canvas, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    plain = [
        getattr(handle, "lines", [handle])[0] if hasattr(handle, "has_xerr") else handle for handle in handles
    ]
    canvas.legend(plain, labels, loc="outside right upper", frameon=False, fontsize=9)


def _svg(canvas: Canvas) -> str:
    """The figure as SVG with letters as outlines; dollar signs in names are no formulas."""
    import matplotlib as mpl
    from matplotlib.text import Text

    for text in canvas.findobj(Text):
        text.set_parse_math(False)
    stream = BytesIO()
    with (
        mpl.rc_context({"svg.hashsalt": "sldcore", "svg.fonttype": "path", "text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # letters that the font lacks become boxes; the caption has them
        canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue().decode()


def _colour(summary: Summary, method: str) -> str:
    if method == summary.baseline:
        return _GREY
    others = [each for each in summary.methods if each != summary.baseline]
    return _COLOURS[others.index(method) % len(_COLOURS)]


def _reach(number: Estimate) -> float:
    return _REACH * number.error if math.isfinite(number.error) else 0.0


def _said(rate: Estimate) -> str:
    return f"{rate.value:.3f}" if math.isfinite(rate.value) else "not known"
