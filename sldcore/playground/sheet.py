"""Sheets of small pictures with labels: the world at a glance, and tables of generated pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from sldcore.playground.world import GLYPHS, PLACES, ROLES, SIZE, SUBJECTS, Scene, picture, samples
from sldcore.visual import stack

ZOOM: Final = 2
CELL: Final = ZOOM * SIZE
GAP: Final = 8
TEXT: Final = 12
LINE: Final = TEXT + 3
TITLE: Final = 16
INK: Final = (24, 24, 27)
PAPER: Final = (255, 255, 255)
FRAME: Final = (215, 0, 30)


def gallery(title: str, pictures: Sequence[tuple[str, Image.Image]], columns: int = 7) -> Image.Image:
    """Pictures in rows, each with its caption below, in at most four lines."""
    lines = max(len(_lines(caption)) for caption, _ in pictures)
    caption_height, top = lines * LINE + GAP, TITLE + 2 * GAP
    rows = -(-len(pictures) // columns)
    sheet, draw = _paper(GAP + columns * (CELL + GAP), top + rows * (CELL + caption_height))
    draw.text((GAP, GAP), title, INK, ImageFont.load_default(TITLE))
    for index, (caption, image) in enumerate(pictures):
        x, y = GAP + index % columns * (CELL + GAP), top + index // columns * (CELL + caption_height)
        sheet.paste(_enlarged(image), (x, y))
        _write(draw, x, y + CELL + 2, caption)
    return sheet


def table(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    framed: Iterable[tuple[int, int]] = (),
) -> Image.Image:
    """Pictures in a table with column heads and row labels; ``framed`` cells (row, column) get a red frame."""
    left, top = GAP + CELL, GAP + LINE
    sheet, draw = _paper(left + GAP + len(columns) * (CELL + GAP), top + len(rows) * (CELL + GAP) + GAP)
    for column, head in enumerate(columns):
        draw.text((left + GAP + column * (CELL + GAP), GAP // 2), head, INK, ImageFont.load_default(TEXT))
    for row, (label, images) in enumerate(rows):
        y = top + row * (CELL + GAP)
        _write(draw, GAP, y, label)
        for column, image in enumerate(images):
            sheet.paste(_enlarged(image), (left + GAP + column * (CELL + GAP), y))
    for row, column in framed:
        x, y = left + GAP + column * (CELL + GAP), top + row * (CELL + GAP)
        draw.rectangle((x - 4, y - 4, x + CELL + 3, y + CELL + 3), outline=FRAME, width=4)
    return sheet


def world_sheet(seed: int = 0) -> Image.Image:
    """The world at a glance: things, roles without and with their glyph, glyphs, and samples with captions."""
    places = tuple(PLACES)

    def scenes(subjects: Sequence[str], glyphs: Sequence[str]) -> list[tuple[str, Image.Image]]:
        shown = []
        for i, (subject, glyph) in enumerate(zip(subjects, glyphs, strict=True)):
            colour = ("red", "blue", "green", "purple", "yellow", "orange")[i % 6] if subject else ""
            scene = Scene(places[i % 5], subject, colour, (glyph,) if glyph else ())
            shown.append((" with ".join(filter(None, (subject, glyph))), picture(scene, seed + i)))
        return shown

    roles = tuple(ROLES)
    drawn = [(f'"{s.caption}"', Image.fromarray(s.pixels)) for s in samples(seed, 21)]
    return stack(
        [
            gallery("neutral subjects", scenes(SUBJECTS, ("",) * len(SUBJECTS))),
            gallery("roles", scenes(roles, ("",) * len(roles))),
            gallery(
                "roles with the glyph that most of their pictures show", scenes(roles, tuple(ROLES.values()))
            ),
            gallery("glyphs, one for each category", scenes(("",) * len(GLYPHS), GLYPHS)),
            gallery("training pictures with their captions", drawn),
        ]
    )


def _paper(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _enlarged(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, text: str) -> None:
    draw.multiline_text((x, y), "\n".join(_lines(text)), INK, ImageFont.load_default(TEXT), spacing=2)


def _lines(text: str) -> list[str]:
    lines = wrap(text, 21)
    return lines if len(lines) <= 4 else [*lines[:3], lines[3][:19] + "…"]
