"""Sheets of pictures: everything is on them, at its place."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sldcore.playground.sheet import CELL, FRAME, gallery, table, world_sheet

RED, GREEN, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


def share(sheet: Image.Image, colour: tuple[int, int, int]) -> float:
    """Pixels of one colour, as a multiple of a picture's."""
    return float((np.asarray(sheet) == colour).all(axis=2).sum() / CELL**2)


def test_a_table_shows_every_picture_whole() -> None:
    sheet = table(["off", "max"], [("one", [RED, GREEN]), ("two", [BLUE, RED])])
    assert [share(sheet, colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))] == [2, 1, 1]


def test_frames_stand_around_their_cells_and_hide_nothing() -> None:
    sheet = table(["off", "max"], [("one", [RED, GREEN]), ("two", [BLUE, RED])], framed=[(1, 0)])
    rows, columns = np.nonzero((np.asarray(sheet) == FRAME).all(axis=2))
    blue_rows, blue_columns = np.nonzero((np.asarray(sheet) == (0, 0, 255)).all(axis=2))
    assert (rows.min(), rows.max()) == (blue_rows.min() - 4, blue_rows.max() + 4)
    assert (columns.min(), columns.max()) == (blue_columns.min() - 4, blue_columns.max() + 4)
    assert share(sheet, (0, 0, 255)) == 1


def test_a_gallery_breaks_into_rows() -> None:
    one_row = gallery("three", [("a", RED), ("b", GREEN), ("c", BLUE)], columns=3)
    two_rows = gallery("three", [("a", RED), ("b", GREEN), ("c", BLUE)], columns=2)
    assert two_rows.height > one_row.height + CELL
    assert [share(two_rows, colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))] == [1, 1, 1]


def test_the_world_is_the_same_sheet_for_the_same_seed() -> None:
    first, again, other = world_sheet(0), world_sheet(0), world_sheet(1)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
