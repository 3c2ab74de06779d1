"""How the playground world draws its places, subjects and roles.

Coordinates are pixels of the finished 64 x 64 picture. Subjects stand on (x, y), the middle of their lower
edge, and are about 36 pixels tall at scale ``s`` = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin
from typing import Final

import numpy as np

from sldcore.playground.canvas import CRIMSON, DARK, GOLD, PAINTS, SKIN, STEEL, WHITE, WOOD, Canvas, Colour


def paint_place(canvas: Canvas, place: str, rng: np.random.Generator) -> None:
    """Fill the canvas with one of the five places; the horizon jitters by two pixels."""
    horizon = 40 + float(rng.uniform(-2, 2))
    sky, ground = {
        "meadow": ((140, 200, 245), (120, 190, 90)),
        "beach": ((190, 228, 248), (238, 214, 160)),
        "night": ((24, 28, 66), (38, 46, 60)),
        "snow": ((200, 208, 220), (244, 247, 250)),
        "room": ((226, 206, 186), (150, 104, 72)),
    }[place]
    canvas.box(0, 0, 64, 64, sky, edge=False)
    canvas.box(0, horizon, 64, 64, ground, edge=False)
    if place == "beach":
        canvas.box(0, horizon - 7, 64, horizon, (60, 140, 200), edge=False)
    elif place == "night":
        canvas.oval(54, 9, 5, 5, (245, 240, 200), edge=None)
    elif place == "meadow":
        canvas.oval(9, 9, 6, 6, (255, 232, 110), edge=None)
    elif place == "room":
        canvas.box(4, 6, 18, 20, (170, 210, 235))
    elif place == "snow":
        for x in (8, 26, 44, 60):
            canvas.oval(x, 6 + x % 5 * 2, 1.6, 1.6, WHITE, edge=None)


def _house(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    c.box(x - 13 * s, y - 20 * s, x + 13 * s, y, PAINTS[colour])
    c.shape([(x - 16 * s, y - 20 * s), (x + 16 * s, y - 20 * s), (x, y - 35 * s)], WOOD)
    c.box(x - 4 * s, y - 11 * s, x + 4 * s, y, (70, 46, 34))


def _tree(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    c.box(x - 3.5 * s, y - 18 * s, x + 3.5 * s, y, WOOD)
    c.oval(x, y - 26 * s, 15 * s, 13 * s, PAINTS[colour])


def _car(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    c.shape(
        [
            (x - 10 * s, y - 13 * s),
            (x - 6 * s, y - 21 * s),
            (x + 7 * s, y - 21 * s),
            (x + 12 * s, y - 13 * s),
        ],
        (190, 225, 245),
    )
    c.box(x - 17 * s, y - 14 * s, x + 17 * s, y - 4 * s, PAINTS[colour])
    for wheel in (-9, 9):
        c.oval(x + wheel * s, y - 4 * s, 5 * s, 5 * s, DARK)
        c.oval(x + wheel * s, y - 4 * s, 2 * s, 2 * s, STEEL, edge=None)


def _cat(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    paint = PAINTS[colour]
    c.line([(x + 9 * s, y - 6 * s), (x + 15 * s, y - 12 * s), (x + 14 * s, y - 22 * s)], DARK, 5 * s)
    c.line([(x + 9 * s, y - 6 * s), (x + 15 * s, y - 12 * s), (x + 14 * s, y - 22 * s)], paint, 3 * s)
    c.oval(x, y - 9 * s, 12 * s, 9 * s, paint)
    for ear in (-1, 1):
        c.shape(
            [
                (x - 4 * s + ear * 8 * s, y - 31 * s),
                (x - 4 * s + ear * 8 * s, y - 22 * s),
                (x - 4 * s + ear * 1 * s, y - 27 * s),
            ],
            paint,
        )
    c.oval(x - 4 * s, y - 21 * s, 8.5 * s, 7.5 * s, paint)
    for eye in (-7.5, -0.5):
        c.oval(x + eye * s, y - 22 * s, 1.6 * s, 1.9 * s, DARK, edge=None)


def _boat(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    c.line([(x, y - 9 * s), (x, y - 37 * s)], WOOD, 2)
    c.shape([(x + 1.5 * s, y - 36 * s), (x + 1.5 * s, y - 12 * s), (x + 15 * s, y - 12 * s)], WHITE)
    c.shape(
        [(x - 17 * s, y - 10 * s), (x + 17 * s, y - 10 * s), (x + 11 * s, y), (x - 11 * s, y)], PAINTS[colour]
    )


def _flower(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    c.line([(x, y), (x, y - 22 * s)], (40, 120, 50), 2.5)
    c.oval(x + 5 * s, y - 8 * s, 5 * s, 2.6 * s, (60, 150, 70))
    for k in range(6):
        angle = k * pi / 3
        c.oval(x + 8 * s * cos(angle), y - 26 * s + 8 * s * sin(angle), 5 * s, 5 * s, PAINTS[colour])
    c.oval(x, y - 26 * s, 4.5 * s, 4.5 * s, (110, 66, 30))


def _person(c: Canvas, x: float, y: float, s: float, paint: Colour) -> None:
    """A standing figure, 36 pixels tall: legs, body, arms, head."""
    for leg in (-3.5, 3.5):
        c.line([(x + leg * s, y - 12 * s), (x + leg * s, y)], DARK, 4 * s)
    c.line([(x - 6 * s, y - 22 * s), (x - 9 * s, y - 13 * s)], paint, 4 * s)
    c.line([(x + 6 * s, y - 22 * s), (x + 9 * s, y - 13 * s)], paint, 4 * s)
    c.box(x - 7 * s, y - 25 * s, x + 7 * s, y - 10 * s, paint)
    c.oval(x, y - 31 * s, 5.5 * s, 6 * s, SKIN)


def _knight(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    _person(c, x, y, s, PAINTS[colour])
    c.box(x - 6.5 * s, y - 39 * s, x + 6.5 * s, y - 26 * s, STEEL)
    c.box(x - 4.5 * s, y - 33.5 * s, x + 4.5 * s, y - 31 * s, DARK, edge=False)
    c.shape(
        [
            (x - 14 * s, y - 23 * s),
            (x - 4 * s, y - 23 * s),
            (x - 4 * s, y - 14 * s),
            (x - 9 * s, y - 8 * s),
            (x - 14 * s, y - 14 * s),
        ],
        STEEL,
    )


def _clown(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    _person(c, x, y, s, PAINTS[colour])
    for puff in (-7, 7):
        c.oval(x + puff * s, y - 32 * s, 4 * s, 4.5 * s, (245, 130, 40))
    c.shape([(x - 6 * s, y - 36 * s), (x + 6 * s, y - 36 * s), (x, y - 48 * s)], PAINTS[colour])
    c.oval(x, y - 30 * s, 2.2 * s, 2.2 * s, CRIMSON, edge=None)
    for button in (-21, -15):
        c.oval(x, y + button * s, 1.8 * s, 1.8 * s, WHITE, edge=None)


def _guest(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    _person(c, x, y, s, PAINTS[colour])
    c.box(x - 9 * s, y - 38 * s, x + 9 * s, y - 35.5 * s, DARK, edge=False)
    c.box(x - 5.5 * s, y - 47 * s, x + 5.5 * s, y - 36 * s, DARK, edge=False)
    c.shape([(x - 2.5 * s, y - 25 * s), (x + 2.5 * s, y - 25 * s), (x, y - 13 * s)], WHITE, edge=False)


def _dancer(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    paint = PAINTS[colour]
    for leg in (-2.5, 2.5):
        c.line([(x + leg * s, y - 12 * s), (x + leg * 1.6 * s, y)], SKIN, 3 * s)
    for arm in (-1, 1):
        c.line(
            [(x + arm * 3 * s, y - 24 * s), (x + arm * 11 * s, y - 30 * s), (x + arm * 9 * s, y - 38 * s)],
            SKIN,
            3 * s,
        )
    c.box(x - 4.5 * s, y - 26 * s, x + 4.5 * s, y - 15 * s, paint)
    c.shape(
        [(x - 4 * s, y - 18 * s), (x + 4 * s, y - 18 * s), (x + 14 * s, y - 8 * s), (x - 14 * s, y - 8 * s)],
        paint,
    )
    c.oval(x, y - 37 * s, 3 * s, 3 * s, WOOD)
    c.oval(x, y - 31 * s, 5 * s, 5.5 * s, SKIN)


def _crowd(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    for dx, dy, k in ((-9, -4, 0.72), (9, -4, 0.72), (0, 0, 0.8)):
        _person(c, x + dx * s, y + dy * s, k * s, PAINTS[colour])


def _student(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    _person(c, x, y, s, PAINTS[colour])
    c.box(x - 5 * s, y - 38 * s, x + 5 * s, y - 34 * s, DARK, edge=False)
    c.shape([(x - 12 * s, y - 39 * s), (x, y - 43 * s), (x + 12 * s, y - 39 * s), (x, y - 35.5 * s)], DARK)
    c.line([(x + 10 * s, y - 39 * s), (x + 10 * s, y - 32 * s)], GOLD, 2)
    c.box(x - 5 * s, y - 21 * s, x + 5 * s, y - 13 * s, WHITE)


def _shopper(c: Canvas, x: float, y: float, s: float, colour: str) -> None:
    _person(c, x, y, s, PAINTS[colour])
    c.oval(x, y - 35 * s, 6 * s, 3.5 * s, WOOD)
    for bag in (-12, 12):
        c.oval(x + bag * s, y - 13 * s, 3 * s, 3 * s, None)
        c.box(x + (bag - 5) * s, y - 12 * s, x + (bag + 5) * s, y - 1 * s, (232, 186, 120))


SUBJECT_ARTISTS: Final[dict[str, Callable[[Canvas, float, float, float, str], None]]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "cat": _cat,
    "boat": _boat,
    "flower": _flower,
    "knight": _knight,
    "clown": _clown,
    "guest": _guest,
    "dancer": _dancer,
    "crowd": _crowd,
    "student": _student,
    "shopper": _shopper,
}
