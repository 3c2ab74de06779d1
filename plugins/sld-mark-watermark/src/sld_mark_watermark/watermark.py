"""The mark, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Final

import numpy as np
from imwatermark import WatermarkDecoder
from PIL import Image

from sld_mark_watermark import WatermarkOptions, __version__
from sld_mark_watermark.embedding import Pixels, with_payload
from sldcore.filters.base import PictureContext

METHOD: Final = "dwtDctSvd"
SMALLEST: Final = 256 * 256
"""Pixels below which a picture has no room for a mark that survives."""

HEADROOM: Final = 12
"""Levels by which a mark changes a pixel; so much is cut off black and white where a picture is too light or too dark."""

CHANCE: Final = 1e-4
"""How probable it may be that bits agree by chance in as many places as a picture that counts as marked."""


class Watermark:
    """Puts its payload into pictures, and sees to it that it can be read again."""

    name = "watermark"
    version = __version__

    def __init__(self, options: WatermarkOptions) -> None:
        self._payload = options.payload.encode()

    def mark(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Image.Image]:
        """The marked pictures, RGB.

        Raises:
            ValueError: a picture is too small, or has no place for the mark.
        """
        return [embed(picture, self._payload) for picture in pictures]


def embed(picture: Image.Image, payload: bytes) -> Image.Image:
    """A copy of the picture that holds the payload.

    Raises:
        ValueError: the picture is too small, or the payload cannot be read from it afterwards.
    """
    _check_size(picture)
    pixels = np.asarray(picture.convert("RGB"))
    # A mark that would be brighter than white or darker than black is cut off: leave room for it only where that happens.
    for room in (0, HEADROOM):
        marked = Image.fromarray(with_payload(_squeezed(pixels, room), payload))
        if read(marked, len(payload)) == payload:
            return marked
    raise ValueError(
        f"a picture of {picture.width} x {picture.height} cannot hold the watermark: it cannot be read back; give a shorter "
        f"payload, draw larger pictures, or take the mark 'watermark' out of the policy"
    )


def read(picture: Image.Image, length: int) -> bytes:
    """The bytes that a picture holds where a payload of this length would stand; noise if it holds none.

    Raises:
        ValueError: the picture is too small to hold any.
    """
    _check_size(picture)
    decoder = WatermarkDecoder("bytes", 8 * length)
    found: bytes = decoder.decode(_bgr(np.asarray(picture.convert("RGB"))), METHOD)
    return found


def agreement(picture: Image.Image, payload: bytes) -> float:
    """The share of the payload's bits that a picture holds: 1 if it is marked, about a half if it is not.

    Raises:
        ValueError: the picture is too small to hold any.
    """
    wanted, found = (
        np.unpackbits(np.frombuffer(each, np.uint8)) for each in (payload, read(picture, len(payload)))
    )
    return float((wanted == found).mean())


def needed(payload: bytes) -> float:
    """The share of bits from which a picture counts as marked; see ``CHANCE``."""
    bits = 8 * len(payload)
    wrong, ways = 0, 1
    while (ways + comb(bits, wrong + 1)) / 2**bits <= CHANCE:
        wrong += 1
        ways += comb(bits, wrong)
    return (bits - wrong) / bits


def _squeezed(pixels: Pixels, room: int) -> Pixels:
    """The pixels between ``room`` and 255 - ``room``."""
    return pixels if not room else np.round(room + pixels * ((255 - 2 * room) / 255)).astype(np.uint8)


def _bgr(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[..., ::-1])


def _check_size(picture: Image.Image) -> None:
    if picture.width * picture.height < SMALLEST or min(picture.size) < 8:
        raise ValueError(
            f"a picture of {picture.width} x {picture.height} is too small for a watermark, which needs as many pixels as "
            f"256 x 256; draw larger pictures, or take the mark 'watermark' out of the policy"
        )
