"""A contact sheet: one line for each quantity, one column for each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

COLUMNS: Final = 25
"""Steps side by side; longer runs go on below."""

TILE: Final = 64
"""Smallest height and width of a preview on the sheet; smaller ones are enlarged in whole pixels."""

MARGIN: Final = 60
"""Pixels left of the previews, for the names of the quantities."""

LINE: Final = 14
"""Pixels above the previews, for the numbers of the steps."""

GAP: Final = 2


def contact_sheet(previews: NDArray[np.float32], names: Sequence[str], steps: Sequence[int]) -> Image.Image:
    """Previews [S, P, 3, h, w] of the P quantities in ``names`` at the S steps in ``steps``.

    A quantity has one scale for all steps, so that its previews can be compared; grey is zero.
    """
    pixels = _as_pixels(previews)
    factor = max(1, -(-TILE // max(pixels.shape[2:4])))
    pixels = pixels.repeat(factor, axis=2).repeat(factor, axis=3)
    height, width = pixels.shape[2] + GAP, pixels.shape[3] + GAP
    columns, bands = min(COLUMNS, len(steps)), -(-len(steps) // COLUMNS)
    band = LINE + len(names) * height
    sheet = Image.new("RGB", (MARGIN + columns * width, bands * band), "white")
    draw = ImageDraw.Draw(sheet)
    for position, step in enumerate(steps):
        left, top = MARGIN + position % COLUMNS * width, position // COLUMNS * band
        draw.text((left, top), str(step), fill="black")
        for line, name in enumerate(names):
            at = top + LINE + line * height
            sheet.paste(Image.fromarray(pixels[position, line]), (left, at))
            if position % COLUMNS == 0:
                draw.text((2, at), name, fill="black")
    return sheet


def _as_pixels(previews: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[S, P, 3, h, w] to [S, P, h, w, 3]; each quantity is divided by what 99.5 % of its values stay below."""
    values = np.nan_to_num(previews, nan=0.0, posinf=0.0, neginf=0.0)
    scale = np.quantile(np.abs(values), 0.995, axis=(0, 2, 3, 4), keepdims=True)
    levels = 0.5 + 0.5 * np.clip(values / np.where(scale > 0, scale, 1.0), -1.0, 1.0)
    pixels: NDArray[np.uint8] = np.moveaxis(np.round(255 * levels).astype(np.uint8), 2, 4)
    return np.ascontiguousarray(pixels)
