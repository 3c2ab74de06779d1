"""Contact sheets of reviewed pictures: what was flagged or could not be reviewed is on them, but cannot be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from sldcore.filters import actions
from sldcore.policy import Action
from sldcore.provenance import save_png
from sldcore.visual import comparison_strip, stack

TILE: Final = 256
COLUMNS: Final = 6
TILES: Final = 120
"""Tiles on one sheet."""

FILE: Final = "contact-sheet.png"

_FRAME: Final = 8
_BAND: Final = 34
_RED: Final = (190, 24, 34)
_WHITE: Final = (255, 255, 255)
_GROUND: Final = (226, 226, 230)


def tile(picture: Image.Image | None, warning: str = "") -> Image.Image:
    """A small square picture, [TILE, TILE]; with a ``warning``, blurred irreversibly and framed red with the warning in it.

    Args:
        picture: RGB, any size; None if there is none to show.
        warning: Why it must not be seen. Empty for pictures that may be.
    """
    square = Image.new("RGB", (TILE, TILE), _GROUND)
    if picture is not None:
        seen = actions.apply(Action(do="blur"), picture, (), "") if warning else picture
        if seen is not None:
            small = contained(seen)
            square.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    if warning:
        _frame(square, warning)
    return square


class ContactSheets:
    """Sheets of tiles in a folder, each written when it is full: ``contact-sheet.png``, ``contact-sheet-2.png``, ..."""

    def __init__(self, folder: Path, title: str) -> None:
        self.files: list[str] = []
        self._folder = folder
        self._title = title
        self._tiles: list[tuple[str, Image.Image]] = []
        self._written = 0

    def add(self, label: str, picture: Image.Image) -> None:
        """Put a tile on the sheet."""
        self._tiles.append((label, picture))
        if len(self._tiles) == TILES:
            self.finish()

    def finish(self) -> None:
        """Write what is not written yet."""
        if not self._tiles:
            return
        first, last = self._written + 1, self._written + len(self._tiles)
        rows = [self._tiles[start : start + COLUMNS] for start in range(0, len(self._tiles), COLUMNS)]
        title = f"{self._title}, pictures {first} to {last}"
        strips = [comparison_strip(row, title if number == 0 else "") for number, row in enumerate(rows)]
        name = FILE if not self.files else f"{Path(FILE).stem}-{len(self.files) + 1}.png"
        save_png(stack(strips), self._folder / name)
        self.files.append(name)
        self._written = last
        self._tiles = []


def sheets_in(folder: Path) -> Iterator[Path]:
    """Contact sheets of earlier reviews in a folder."""
    yield folder / FILE
    yield from folder.glob(f"{Path(FILE).stem}-[0-9]*.png")


def contained(picture: Image.Image) -> Image.Image:
    """The picture as large as fits the tile; what is small is enlarged without smoothing."""
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _frame(square: Image.Image, warning: str) -> None:
    draw = ImageDraw.Draw(square)
    draw.rectangle((0, 0, TILE - 1, TILE - 1), outline=_RED, width=_FRAME)
    draw.rectangle((0, TILE - _BAND, TILE, TILE), fill=_RED)
    text = " ".join(warning.split())
    room = TILE - 2 * _FRAME
    font = next(
        (
            font
            for size in range(18, 11, -1)
            if (font := ImageFont.load_default(size)).getlength(text) <= room
        ),
        ImageFont.load_default(12),
    )
    while font.getlength(text) > room:
        text = text.removesuffix("...")[:-1].rstrip() + "..."
    draw.text((TILE / 2, TILE - _BAND / 2), text, _WHITE, font, "mm")
