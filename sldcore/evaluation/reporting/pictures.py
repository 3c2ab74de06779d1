"""Pictures of a run for its report: how they are read, and what is shown of them."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image

LARGEST: Final = 256
"""The longer side of a picture in a report, in pixels; larger ones are scaled down."""

VEILED: Final = 4
"""The longer side of what is shown before a click, in pixels: colours, but nothing that can be recognised."""

MOST_PIXELS: Final = 1 << 26
"""Larger files are not opened: 64 million pixels."""

_UNREADABLE: Final = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's for a broken PNG
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def read(path: Path) -> Image.Image | None:
    """An RGB picture, or None if the file is missing, broken or too large."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB") if image.width * image.height <= MOST_PIXELS else None
    except _UNREADABLE:
        return None


def inside(folder: Path, name: str) -> Path:
    """The path of a run's file; one that leads out of the folder becomes a path that does not exist."""
    path = (folder / name).resolve()
    return path if name and path.is_relative_to(folder.resolve()) else folder / "outside-of-the-run"


def clear(picture: Image.Image) -> str:
    """The picture as a data URI, PNG, at most ``LARGEST`` long."""
    copy = picture.copy()
    copy.thumbnail((LARGEST, LARGEST))
    return _data(copy)


def veiled(picture: Image.Image) -> str:
    """What is left of the picture before a click, as a data URI: at most ``VEILED`` pixels a side."""
    copy = picture.copy()
    copy.thumbnail((VEILED, VEILED), Image.Resampling.BOX)
    return _data(copy)


def _data(picture: Image.Image) -> str:
    stream = BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(stream.getvalue()).decode()}"
