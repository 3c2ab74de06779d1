"""The surface that the playground world is drawn on, and its colours.

Coordinates are pixels of the finished picture; shapes are drawn four times larger and averaged down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

DARK: Final[Colour] = (28, 26, 34)
WHITE: Final[Colour] = (250, 250, 250)
SKIN: Final[Colour] = (241, 201, 165)
WOOD: Final[Colour] = (122, 78, 46)
STEEL: Final[Colour] = (188, 196, 208)
GOLD: Final[Colour] = (240, 196, 40)
CRIMSON: Final[Colour] = (200, 16, 34)

PAINTS: Final[dict[str, Colour]] = {
    "red": (222, 50, 44),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 160, 70),
    "blue": (45, 95, 220),
    "purple": (145, 65, 190),
}


class Canvas:
    """A supersampled drawing surface in the coordinates of the finished picture.

    Args:
        size: Width and height of the finished picture in pixels.
    """

    SCALE: Final = 4

    def __init__(self, size: int) -> None:
        self.size = size
        self._image = Image.new("RGB", (size * self.SCALE, size * self.SCALE))
        self._draw = ImageDraw.Draw(self._image)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, edge: bool = True) -> None:
        """Fill a rectangle, with a dark edge unless told otherwise."""
        self._draw.rectangle(self._scaled(x0, y0, x1, y1), fill=fill, outline=DARK if edge else None, width=4)

    def oval(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: Colour | None,
        edge: Colour | None = DARK,
        width: float = 1.0,
    ) -> None:
        """Fill an ellipse around (x, y); ``width`` is the edge's in pixels."""
        self._draw.ellipse(
            self._scaled(x - rx, y - ry, x + rx, y + ry),
            fill=fill,
            outline=edge,
            width=round(width * self.SCALE),
        )

    def shape(self, points: Sequence[tuple[float, float]], fill: Colour, edge: bool = True) -> None:
        """Fill a polygon, with a dark edge unless told otherwise."""
        flat = [(x * self.SCALE, y * self.SCALE) for x, y in points]
        self._draw.polygon(flat, fill=fill)
        if edge:
            self._draw.line([*flat, flat[0]], fill=DARK, width=4, joint="curve")

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float) -> None:
        """Draw connected lines, ``width`` pixels wide."""
        flat = [(x * self.SCALE, y * self.SCALE) for x, y in points]
        self._draw.line(flat, fill=fill, width=round(width * self.SCALE), joint="curve")

    def finish(self) -> NDArray[np.uint8]:
        """The finished picture, uint8 [size, size, 3]."""
        return np.asarray(self._image.resize((self.size, self.size), Image.Resampling.BOX), dtype=np.uint8)

    def _scaled(self, *values: float) -> tuple[float, ...]:
        return tuple(value * self.SCALE for value in values)
