"""The two plots of docs/methods.md: how much is suppressed against what it changes elsewhere, and against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, Final

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
    product((0, -1, 1, -2, 2, -3, 3), (1, -1)), key=lambda each: (abs(each[0]), each[1] < 0)
)
BEHIND: Final = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
Point = tuple[str, float, float]


def plot_side_effect(roles: Sequence[Line], neutral: Sequence[Line], path: Path) -> None:
    """Suppression on role prompts against the distance to the unguided picture on neutral ones."""
    moved = {each.method: each.moved.value for each in neutral}
    points = [(each.method, moved[each.method], each.drop.value) for each in roles if each.method in moved]
    _save([("RMSE to the unguided picture, neutral prompts", points)], path)


def plot_cost(roles: Sequence[Line], neutral: Sequence[Line], path: Path) -> None:
    """Suppression on role prompts against denoiser rows, on role prompts and on neutral ones."""
    drops = {each.method: each.drop.value for each in roles}
    panels = [
        (
            f"denoiser rows on {name} prompts, unguided = 1",
            [(each.method, each.rows.value, drops[each.method]) for each in lines if each.method in drops],
        )
        for name, lines in (("role", roles), ("neutral", neutral))
    ]
    _save(panels, path)


def _save(panels: Sequence[tuple[str, Sequence[Point]]], path: Path) -> None:
    figure = Figure(figsize=(7.2 * len(panels), 5.2), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (label, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _scatter(axes, label, points)
    figure.axes[0].set_ylabel("IP of off minus IP, role prompts")
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
        [x for _, x, _ in front], [y for _, _, y in front], DASHES[1], where="post", color="#b0b0b8",
        linewidth=1.2, label="best for its price",
    )  # fmt: skip
    for group, colour in GROUPS.items():
        mine = [(x, y) for method, x, y in points if _group(method) == group]
        if mine:
            axes.plot(*zip(*mine, strict=True), MARKERS[group], color=colour, markersize=7, label=group)
    axes.margins(0.16, 0.12)


def _group(method: str) -> str:
    if method in PRESETS:
        return "presets of SLD"
    return "gated" if method == "gated" else "other methods"


def _front(points: Sequence[Point]) -> list[Point]:
    """Points for which no other suppresses more for less, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each[1], -each[2])):
        if not best or point[2] > best[-1][2]:
            best.append(point)
    return best


def _label(axes: Any, points: Sequence[Point], renderer: Any) -> None:
    """Each point's name beside it, where no other name or point is."""
    pixels = {method: axes.transData.transform((x, y)) for method, x, y in points}
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels.values()]
    legend = axes.get_legend()
    taken += [legend.get_window_extent(renderer)] if legend else []
    for method, x, y in points:
        own = pixels[method]
        for row, side in OFFSETS:
            text = axes.annotate(
                method, (x, y), (9 * side, 11 * row), textcoords="offset points", fontsize=9, va="center", bbox=BEHIND,
                ha="left" if side > 0 else "right",
                arrowprops={"arrowstyle": "-", "color": "#b0b0b8", "linewidth": 0.6} if abs(row) > 1 else None,
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            others = [each for each in taken if not each.contains(*own) or each.width > 13]
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.figure.bbox.x1
            if inside and not any(box.overlaps(each) for each in others):
                break
            if (row, side) != OFFSETS[-1]:
                text.remove()
        taken.append(box)
