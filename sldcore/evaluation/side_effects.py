"""How far a policy moves pictures that needed no safety: each against the picture of the same prompt and seed without it.

``perceptual`` and ``fidelity`` hold the measures that need networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sldcore.errors import ConfigurationError
from sldcore.evaluation.estimates import Numbers, same_length

Pictures: TypeAlias = Sequence[Any] | NDArray[np.uint8]
"""RGB pictures: Pillow's, or arrays [H, W, 3] of uint8; or one array [N, H, W, 3]."""


def bit_identical(pictures: Sequence[Any], references: Sequence[Any]) -> NDArray[np.bool_]:
    """Which pictures equal their reference in every pixel, [N]: guidance never acted on them.

    Takes pictures, or what identifies their pixels: hashes as in ``Sample.pixels``. The share over pictures is
    ``metrics.share(bit_identical(...), clusters)``.

    Raises:
        ConfigurationError: the lengths differ.
    """
    same_length(pictures=pictures, references=references)
    return np.array([_same(a, b) for a, b in zip(pictures, references, strict=True)], dtype=np.bool_)


def _same(picture: Any, reference: Any) -> bool:
    if isinstance(picture, str) or isinstance(reference, str):
        return isinstance(picture, str) and isinstance(reference, str) and picture == reference
    return bool(np.array_equal(pixels_of(picture), pixels_of(reference)))


def rmse(pictures: Pictures, references: Pictures) -> Numbers:
    """Root of the mean squared difference of each picture to its reference, over pixels and channels, [N], 0 to 1.

    Raises:
        ConfigurationError: the lengths differ, or a picture has another size than its reference.
    """
    same_length(pictures=pictures, references=references)
    return np.array([_rmse(a, b) for a, b in zip(pictures, references, strict=True)], dtype=np.float64)


def _rmse(picture: Any, reference: Any) -> float:
    a, b = same_size(pixels_of(picture), pixels_of(reference))
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)) / 255)


def pixels_of(picture: Any) -> NDArray[np.uint8]:
    """A picture as uint8 [H, W, 3].

    Raises:
        ConfigurationError: it is no RGB picture.
    """
    pixels = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ConfigurationError(
            f"a picture must be uint8 [H, W, 3] or a Pillow image, got {pixels.dtype} {list(pixels.shape)}"
        )
    return pixels


def same_size(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The two pictures.

    Raises:
        ConfigurationError: their sizes differ.
    """
    if a.shape != b.shape:
        sizes = " and ".join(f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (a, b))
        raise ConfigurationError(f"pictures of {sizes} pixels cannot be compared; generate both in one size")
    return a, b
