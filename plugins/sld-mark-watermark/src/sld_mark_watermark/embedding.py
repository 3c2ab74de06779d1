"""How bits are put into pixels, so that the decoder of invisible-watermark reads them with its method dwtDctSvd.

In blocks of 8 x 8 pixels, the largest singular value of the cosine transform of the low-pass band of U (Haar, 4 x 4) is moved to
where its remainder says 0 or 1. That package's own encoder goes through 8-bit YUV, which dims strong colours (a red picture comes
back at 21 dB), lets numbers wrap around, and swaps two bands; here only what the bits need is added to the picture.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

STEP: Final = 36.0
"""Two steps of the singular value with the same remainder are so far apart; what the decoder expects."""

SIDE: Final = 4
"""Side of a block of the low-pass band; a value of that is 2 x 2 pixels."""

TO_U: Final = np.array([-0.147, -0.289, 0.436])
"""RGB to U, as OpenCV has it; U is stored with 128 added."""

FROM_U: Final = np.array([0.0, -0.395, 2.032])
"""What one more of U adds to R, G and B, with the same brightness."""

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]


def with_payload(pixels: Pixels, payload: bytes) -> Pixels:
    """The pixels [H, W, 3] with the payload in them, as often as it fits; cut off at black and white."""
    bits = np.unpackbits(np.frombuffer(payload, np.uint8))
    rows, columns = (length // (2 * SIDE) for length in pixels.shape[:2])
    part = pixels[: rows * 2 * SIDE, : columns * 2 * SIDE].astype(np.float64)
    low = _as_blocks(_low_pass(part @ TO_U + 128), rows, columns)
    moved = _moved(low, bits[np.arange(len(low)) % len(bits)]) - low
    added = _from_blocks(moved, rows, columns).repeat(2, 0).repeat(2, 1) / 2
    marked = pixels.copy()
    marked[: part.shape[0], : part.shape[1]] = np.round(part + added[..., None] * FROM_U).clip(0, 255)
    return marked


def _low_pass(values: Values) -> Values:
    """The low-pass band of the Haar transform, [H / 2, W / 2]."""
    band: Values = (values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]) / 2
    return band


def _moved(blocks: Values, bits: Pixels) -> Values:
    """The blocks [N, 4, 4] with their largest singular values where the decoder reads the bits [N]."""
    # The cosine transform is a rotation from both sides, and leaves singular values as they are.
    left, singular, right = np.linalg.svd(blocks)
    wanted = 0.25 + 0.5 * bits
    steps = np.maximum(np.round(singular[:, 0] / STEP - wanted), 0)
    singular[:, 0] = (steps + wanted) * STEP
    moved: Values = (left * singular[:, None, :]) @ right
    return moved


def _as_blocks(band: Values, rows: int, columns: int) -> Values:
    return band.reshape(rows, SIDE, columns, SIDE).transpose(0, 2, 1, 3).reshape(-1, SIDE, SIDE)


def _from_blocks(blocks: Values, rows: int, columns: int) -> Values:
    return (
        blocks.reshape(rows, columns, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(rows * SIDE, columns * SIDE)
    )
