"""The two plots of docs/methods.md: how much is suppressed against what it changes elsewhere, and against what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from methods_numbers import Line

from sldcore.documents import write_bytes_atomically
from sldcore.visual import DASHES, LINES

PRESETS: Final = ("off", "weak", "medium", "strong", "max")
GROUPS: Final = {"presets of SLD": LINES[0], "gated": LINES[1], "other methods": LINES[2]}
MARKERS: Final = {"presets of SLD": "o", "gated": "D", "other methods": "s"}
OFFSETS: Final = sorted(
    product((0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5), (1, -1)), key=lambda each: (abs(each[0]), each[1] < 0)
)
BEHIND: Final = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
ROWS: Final = (1, 1.5, 2, 3, 4.5)
SUPPRESSED: Final = "share of off's IP that is gone, role prompts"


class Point(NamedTuple):
    """A method in a panel; ``few`` if it has fewer pictures than the others."""

    method: str
    x: float
    y: float
    few: bool


def plot_side_effect(roles: Sequence[Line], neutral: Sequence[Line], path: Path) -> None:
    """Suppression on role prompts against the distance to the unguided picture on neutral ones."""
    moved = {each.method: each.moved.value for each in neutral}
    _save([("RMSE to the unguided picture, neutral prompts", _points(roles, moved))], path)


def plot_cost(roles: Sequence[Line], neutral: Sequence[Line], path: Path) -> None:
    """Suppression on role prompts against denoiser rows, on role prompts and on neutral ones."""
    panels = [
        (
            f"denoiser rows on {name} prompts, unguided = 1",
            _points(roles, {each.method: each.rows.value for each in lines}),
        )
        for name, lines in (("role", roles), ("neutral", neutral))
    ]
    _save(panels, path, rows=True)


def _points(roles: Sequence[Line], prices: Mapping[str, float]) -> list[Point]:
    most = max(each.ip.n for each in roles)
    return [
        Point(
            each.method,
            prices[each.method],
            1 - each.ip.value / (each.ip.value + each.drop.value),
            each.ip.n < most,
        )
        for each in roles
        if each.method in prices
    ]


def _save(panels: Sequence[tuple[str, Sequence[Point]]], path: Path, rows: bool = False) -> None:
    figure = Figure(figsize=(7.2 * len(panels), 5.2), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (label, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _scatter(axes, label, points)
        if rows:
            axes.set_xscale("log")
            axes.set_xlim(0.8, 6)
            axes.set_xticks(ROWS, [f"{each:g}" for each in ROWS])
            axes.minorticks_off()
    figure.axes[0].set_ylabel(SUPPRESSED)
    figure.axes[-1].legend(loc="lower right", frameon=False)
    canvas.draw()
    for axes, (_, points) in zip(figure.axes, panels, strict=True):
        _label(axes, points, canvas.get_renderer())
    buffer = BytesIO()
    canvas.print_png(buffer)
    write_bytes_atomically(path, buffer.getvalue())


def _scatter(axes: Any, label: str, points: Sequence[Point]) -> None:
    axes.set_xlabel(label)
    axes.grid(color="#e6e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    front = _front(points)
    axes.step(
        [each.x for each in front], [each.y for each in front], DASHES[1], where="post", color="#b0b0b8",
        linewidth=1.2, label="best for its price",
    )  # fmt: skip
    for group, colour in GROUPS.items():
        for few in (False, True):
            mine = [(each.x, each.y) for each in points if _group(each.method) == group and each.few == few]
            if mine:
                axes.plot(
                    *zip(*mine, strict=True), MARKERS[group], color=colour, markersize=7,
                    label=f"{group}, fewer prompts" if few else group, markerfacecolor="white" if few else colour,
                )  # fmt: skip
    axes.margins(0.16, 0.12)


def _group(method: str) -> str:
    if method in PRESETS:
        return "presets of SLD"
    return "gated" if method == "gated" else "other methods"


def _front(points: Sequence[Point]) -> list[Point]:
    """Points for which no other suppresses more for less, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.x, -each.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def _label(axes: Any, points: Sequence[Point], renderer: Any) -> None:
    """Each point's name beside it, where no other name or point is."""
    pixels = {each.method: axes.transData.transform((each.x, each.y)) for each in points}
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels.values()]
    legend = axes.get_legend()
    taken += [legend.get_window_extent(renderer)] if legend else []
    for point in sorted(points, key=lambda each: each.x):
        own = pixels[point.method]
        others = [each for each in taken if not each.contains(*own) or each.width > 13]
        for place in OFFSETS:
            trial = _name(axes, point, place, leader=False)
            box = trial.get_window_extent(renderer)
            trial.remove()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.figure.bbox.x1
            if inside and not any(box.overlaps(each) for each in others):
                break
        _name(axes, point, place, leader=abs(place[0]) > 1)
        taken.append(box)


def _name(axes: Any, point: Point, place: tuple[int, int], leader: bool) -> Any:
    """The point's name, so many lines above and to this side of it."""
    row, side = place
    return axes.annotate(
        point.method, (point.x, point.y), (9 * side, 11 * row), textcoords="offset points", fontsize=9, va="center",
        bbox=BEHIND, ha="left" if side > 0 else "right",
        arrowprops={"arrowstyle": "-", "color": "#b0b0b8", "linewidth": 0.6} if leader else None,
    )  # fmt: skip
