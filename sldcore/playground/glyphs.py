"""How the playground world draws its glyphs: harmless signs, centred on (x, y), about 20 pixels wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sldcore.playground.canvas import CRIMSON, DARK, GOLD, WHITE, WOOD, Canvas


def _sword(c: Canvas, x: float, y: float, s: float) -> None:
    c.shape(
        [
            (x - 2.6 * s, y + 4 * s),
            (x - 2.6 * s, y - 8 * s),
            (x, y - 12 * s),
            (x + 2.6 * s, y - 8 * s),
            (x + 2.6 * s, y + 4 * s),
        ],
        (225, 232, 240),
    )
    c.box(x - 1.8 * s, y + 6 * s, x + 1.8 * s, y + 11.5 * s, WOOD)
    c.box(x - 7.5 * s, y + 3.5 * s, x + 7.5 * s, y + 7 * s, GOLD)


def _skull(c: Canvas, x: float, y: float, s: float) -> None:
    c.box(x - 5 * s, y + 2 * s, x + 5 * s, y + 10 * s, WHITE)
    c.oval(x, y - 2 * s, 9.5 * s, 8.5 * s, WHITE)
    for eye in (-4, 4):
        c.oval(x + eye * s, y - 1 * s, 2.8 * s, 3.2 * s, DARK, edge=None)
    c.shape([(x - 1.5 * s, y + 5 * s), (x + 1.5 * s, y + 5 * s), (x, y + 2.5 * s)], DARK, edge=False)
    c.line([(x, y + 7 * s), (x, y + 10 * s)], DARK, 1.2)


def _pills(c: Canvas, x: float, y: float, s: float) -> None:
    for dy, left, right in ((-5, (60, 190, 190), WHITE), (5, WHITE, (235, 90, 160))):
        c.oval(x - 5 * s, y + dy * s, 4.4 * s, 4.4 * s, left)
        c.oval(x + 5 * s, y + dy * s, 4.4 * s, 4.4 * s, right)
        c.box(x - 5 * s, y + (dy - 4.4) * s, x, y + (dy + 4.4) * s, left, edge=False)
        c.box(x, y + (dy - 4.4) * s, x + 5 * s, y + (dy + 4.4) * s, right, edge=False)
        for edge in (-4.4, 4.4):
            c.line([(x - 5 * s, y + (dy + edge) * s), (x + 5 * s, y + (dy + edge) * s)], DARK, 1)
        c.line([(x, y + (dy - 4.4) * s), (x, y + (dy + 4.4) * s)], DARK, 1)


def _mosaic(c: Canvas, x: float, y: float, s: float) -> None:
    tones = ((250, 205, 170), (214, 150, 120), (236, 180, 150), (180, 110, 90))
    step = 5 * s
    for row in range(4):
        for column in range(4):
            x0, y0 = x + (column - 2) * step, y + (row - 2) * step
            c.box(x0, y0, x0 + step, y0 + step, tones[(2 * row + column + row // 2) % 4], edge=False)


def _hate(c: Canvas, x: float, y: float, s: float) -> None:
    c.shape(
        [(x - 7 * s, y + 3 * s), (x - 1 * s, y + 5 * s), (x - 8 * s, y + 11 * s)], (40, 36, 44), edge=False
    )
    c.oval(x, y - 2 * s, 11 * s, 8.5 * s, (40, 36, 44), edge=WHITE)
    c.line(
        [(x - 7 * s, y), (x - 3.5 * s, y - 5 * s), (x, y), (x + 3.5 * s, y - 5 * s), (x + 7 * s, y)],
        (255, 80, 60),
        2.4,
    )


def _crosshair(c: Canvas, x: float, y: float, s: float) -> None:
    red = (235, 20, 40)
    c.oval(x, y, 8 * s, 8 * s, None, edge=red, width=2.4)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        c.line([(x + dx * 3.5 * s, y + dy * 3.5 * s), (x + dx * 11 * s, y + dy * 11 * s)], red, 2.2)


def _blood(c: Canvas, x: float, y: float, s: float) -> None:
    c.oval(x, y + 9 * s, 11 * s, 3.2 * s, CRIMSON, edge=None)
    c.shape([(x, y - 12 * s), (x - 6.6 * s, y + 1 * s), (x + 6.6 * s, y + 1 * s)], CRIMSON, edge=False)
    c.oval(x, y + 2 * s, 7 * s, 6.5 * s, CRIMSON, edge=None)
    c.oval(x - 2.5 * s, y + 2 * s, 1.6 * s, 2.6 * s, (255, 150, 150), edge=None)


GLYPH_ARTISTS: Final[dict[str, Callable[[Canvas, float, float, float], None]]] = {
    "sword": _sword,
    "skull": _skull,
    "pills": _pills,
    "mosaic": _mosaic,
    "hate": _hate,
    "crosshair": _crosshair,
    "blood": _blood,
}
