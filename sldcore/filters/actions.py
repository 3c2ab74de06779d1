"""What is shown in place of a flagged picture.

Blur and pixelation are irreversible: a region is first reduced to at most eight blocks along its longer side, in 32 levels, and
what is drawn is made from these blocks alone. Nothing else of the picture is left in the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from math import ceil, floor
from pathlib import Path
from textwrap import wrap
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from sldcore.errors import PolicyError
from sldcore.policy import Action
from sldcore.types import Box

SEVERITY: Final = ("flag", "blur", "pixelate", "replace", "black", "drop", "raise")
"""Actions from the mildest to the strictest; of several the strictest is taken."""

BLOCKS: Final = 8
LEVEL: Final = 8  # 256 / 32
MARGIN: Final = 0.1  # of a box's size, on every side

_CARD: Final = (46, 48, 54)
_INK: Final = (232, 232, 236)


def strictest(actions: Iterable[Action]) -> Action | None:
    """The strictest of some final actions; None if there is none."""
    return max(actions, key=lambda action: SEVERITY.index(action.do), default=None)


def apply(action: Action, picture: Image.Image, boxes: Sequence[Box], reason: str) -> Image.Image | None:
    """The RGB picture to show in place of ``picture``, of the same size; None for ``drop``.

    Args:
        action: A final action: not ``regenerate``, and not ``raise``.
        picture: RGB.
        boxes: Where filters found what they flagged. Without any, ``area: boxes`` covers the whole picture.
        reason: For the card of ``replace``.

    Raises:
        PolicyError: The picture to show instead cannot be read.
    """
    if action.do == "flag":
        return picture
    if action.do == "drop":
        return None
    if action.do in ("blur", "pixelate"):
        return _covered(action, picture, boxes)
    if action.do == "replace":
        return _replacement(action, picture.size, reason)
    return Image.new("RGB", picture.size)


def check(action: Action) -> None:
    """Whether what ``action`` shows can be had.

    Raises:
        PolicyError: The picture to show instead cannot be read.
    """
    if action.picture is not None:
        _read(action.picture)


def _covered(action: Action, picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    whole = (0, 0, *picture.size)
    regions = [_pixels(box, picture.size) for box in boxes] if action.area == "boxes" else []
    covered = picture.copy()
    for region in regions or [whole]:
        blocks = _reduced(picture.crop(region))
        smooth = Image.Resampling.BICUBIC if action.do == "blur" else Image.Resampling.NEAREST
        size = (region[2] - region[0], region[3] - region[1])
        covered.paste(blocks.resize(size, smooth), region[:2])
    return covered


def _reduced(region: Image.Image) -> Image.Image:
    """At most eight blocks along the longer side, averaged and rounded to 32 levels."""
    factor = min(1.0, BLOCKS / max(region.size))
    size = tuple(max(1, floor(length * factor)) for length in region.size)
    blocks = region.resize(size, Image.Resampling.BOX)  # type: ignore[arg-type]
    return blocks.point(lambda value: value // LEVEL * LEVEL + LEVEL // 2)


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box with its margin in pixels, inside the picture, and never empty."""
    width, height = size
    across, along = MARGIN * (box.right - box.left), MARGIN * (box.bottom - box.top)
    left = min(max(0, floor((box.left - across) * width)), width - 1)
    top = min(max(0, floor((box.top - along) * height)), height - 1)
    right = max(min(width, ceil((box.right + across) * width)), left + 1)
    bottom = max(min(height, ceil((box.bottom + along) * height)), top + 1)
    return left, top, right, bottom


def _replacement(action: Action, size: tuple[int, int], reason: str) -> Image.Image:
    return _read(action.picture).resize(size) if action.picture is not None else card(size, reason)


@cache
def _read(file: str) -> Image.Image:
    try:
        with Image.open(Path(file)) as picture:
            return picture.convert("RGB")
    except (OSError, Image.DecompressionBombError) as problem:
        raise PolicyError(f"on_flag: replace: cannot read the picture {file}: {problem}") from None


def card(size: tuple[int, int], reason: str) -> Image.Image:
    """A plain card that says why there is no picture, as far as the size allows."""
    picture = Image.new("RGB", size, _CARD)
    letters = max(8, min(size) // 14)
    lines = wrap(f"not shown: {reason}" if reason else "not shown", max(8, 2 * size[0] // letters))
    if min(size) >= 4 * letters:
        font = ImageFont.load_default(letters)
        ImageDraw.Draw(picture).multiline_text(
            (size[0] / 2, size[1] / 2), "\n".join(lines), _INK, font, "mm", align="center"
        )
    return picture
