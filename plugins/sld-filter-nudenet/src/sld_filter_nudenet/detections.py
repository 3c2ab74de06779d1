"""From a picture to what the network is given, and from its output to boxes, in the way of NudeNet 3.4.

Thresholds in the literature are on scores that come about this way: the picture is put into the upper left of a black square,
which is sampled bilinearly, without smoothing, to 320 x 320; of overlapping boxes the best stays, whatever its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIDE: Final = 320
FLOOR: Final = 0.25
"""Weaker detections are none."""
OVERLAP: Final = 0.45
"""Intersection over union above which the weaker of two boxes is dropped."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Detection:
    """A class by its number, its score, and edges in pixels, within the picture."""

    label: int
    score: float
    left: float
    top: float
    right: float
    bottom: float


def network_input(pixels: Pixels, swapped: bool = True) -> Floats:
    """Pixels [H, W, 3], RGB, as input [1, 3, 320, 320] in 0..1, as NudeNet makes it from a file.

    Bit for bit where the picture is shrunk; where it is enlarged, one in some thousand samples may be one level off.

    ``swapped`` channels are blue, green, red, as NudeNet gives them to the network; else red, green, blue. The square is never made: of a long and thin picture it would
    take gigabytes.
    """
    low, high, before, behind = _positions(max(pixels.shape[:2]))
    across = before[None, :, None], behind[None, :, None]
    upper = _corner(pixels, low, low) * across[0] + _corner(pixels, low, high) * across[1]
    lower = _corner(pixels, high, low) * across[0] + _corner(pixels, high, high) * across[1]
    # OpenCV's fixed-point bilinear sampling: exact arithmetic differs by one level in a tenth of the samples, which
    # moves scores in the second decimal.
    weighted = (before[:, None, None] * (upper >> 4) >> 16) + (behind[:, None, None] * (lower >> 4) >> 16)
    sampled = (weighted + 2) >> 2
    channels = (sampled[:, :, ::-1] if swapped else sampled).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(channels, dtype=np.float32) / np.float32(255)


def _positions(side: int) -> tuple[Integers, Integers, Integers, Integers]:
    """For each of 320 samples of ``side`` pixels the pixels before and behind it, and their weights in 2048ths."""
    centres = np.clip((np.arange(SIDE) + 0.5) * side / SIDE - 0.5, 0, side - 1)
    low = np.floor(centres).astype(np.int64)
    part = (centres - low).astype(np.float32)
    weights = [np.rint(each * 2048).astype(np.int64) for each in (1 - part, part)]
    return low, np.minimum(low + 1, side - 1), weights[0], weights[1]


def _corner(pixels: Pixels, rows: Integers, columns: Integers) -> Integers:
    """Pixels at rows and columns, [320, 320, 3]; black outside of the picture."""
    height, width = pixels.shape[:2]
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    found = pixels[np.ix_(np.minimum(rows, height - 1), np.minimum(columns, width - 1))]
    masked: Integers = found.astype(np.int64) * inside[:, :, None]
    return masked


def detections(output: Floats, width: int, height: int) -> list[Detection]:
    """What the network found in a picture: output [4 + classes, N], boxes as centre and size in the 320 x 320 input.

    Raises:
        ValueError: a number is not finite; it would pass for a score below every threshold.
    """
    if not np.isfinite(output).all():
        raise ValueError("NudeNet gave numbers that are not finite; the picture cannot be judged")
    scores, labels = output[4:].max(axis=0), output[4:].argmax(axis=0)
    edges = _edges(output[:4].astype(np.float64) * (max(width, height) / SIDE), width, height)
    strong = np.flatnonzero(scores > FLOOR)
    order = strong[np.argsort(-scores[strong], kind="stable")]
    kept: list[int] = []
    for index in order:
        if not kept or _overlaps(edges[:, index], edges[:, kept]).max() <= OVERLAP:
            kept.append(int(index))
    return [Detection(int(labels[i]), float(scores[i]), *map(float, edges[:, i])) for i in kept]


def _edges(boxes: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    x, y, w, h = boxes
    limits = [width, height, width, height]
    return np.stack(
        [
            np.clip(edge, 0, limit)
            for edge, limit in zip((x - w / 2, y - h / 2, x + w / 2, y + h / 2), limits, strict=True)
        ]
    )


def _overlaps(one: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of a box [4] with boxes [4, K]; 0 for boxes without area."""
    sides = np.minimum(one[2:, None], others[2:]) - np.maximum(one[:2, None], others[:2])
    common = np.prod(np.maximum(sides, 0), axis=0)
    united = np.prod(one[2:] - one[:2]) + np.prod(others[2:] - others[:2], axis=0) - common
    overlap: NDArray[np.float64] = np.divide(common, united, out=np.zeros_like(common), where=united > 0)
    return overlap
