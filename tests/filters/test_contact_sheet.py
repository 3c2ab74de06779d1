"""Contact sheets show what may be shown, and of the rest that it is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sldcore.filters.contact_sheet import TILE, TILES, ContactSheets, sheets_in, tile

RED = [190, 24, 34]


def noise(seed: int, size: tuple[int, int] = (256, 256)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def test_a_picture_without_warning_is_shown_as_it_is() -> None:
    assert np.array_equal(pixels(tile(noise(0))), pixels(noise(0)))


def test_a_warned_of_picture_has_a_red_frame_and_words() -> None:
    seen = pixels(tile(noise(0), "sexual"))
    assert all((edge == RED).all() for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]))
    assert (seen[-30:-5] == [255, 255, 255]).all(axis=-1).any()


def test_pictures_that_differ_in_detail_alone_look_the_same_when_warned_of() -> None:
    """What is blurred holds no detail: two pictures with equal means per block give the same tile."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.array_equal(
        pixels(tile(Image.fromarray(stripes), "x")), pixels(tile(Image.fromarray(stripes[:, ::-1]), "x"))
    )


def test_the_neighbour_s_share_of_a_pixel_cannot_be_told() -> None:
    changed = pixels(noise(0)).copy()
    changed[100, 100] = 255 - changed[100, 100]
    assert np.array_equal(pixels(tile(noise(0), "x")), pixels(tile(Image.fromarray(changed), "x")))


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (300, 7), (5, 5)])
def test_tiles_have_one_size_whatever_the_picture_s(size: tuple[int, int]) -> None:
    for warning in ("", "a category"):
        assert tile(noise(0, size), warning).size == (TILE, TILE)


def test_a_long_warning_stays_inside() -> None:
    seen = pixels(tile(None, "many categories, " * 40))
    assert (seen[:, 0] == RED).all()
    assert (seen[:, -1] == RED).all()


def test_a_full_sheet_is_written_and_another_begun(tmp_path: Path) -> None:
    sheets = ContactSheets(tmp_path, "policy x")
    small = Image.new("RGB", (TILE, TILE))
    for number in range(TILES + 1):
        sheets.add(str(number), small)
    assert sheets.files == ["contact-sheet.png"]
    sheets.finish()
    sheets.finish()
    assert sheets.files == ["contact-sheet.png", "contact-sheet-2.png"]
    assert [file.name for file in sheets_in(tmp_path)] == sheets.files
    with (
        Image.open(tmp_path / "contact-sheet.png") as first,
        Image.open(tmp_path / "contact-sheet-2.png") as second,
    ):
        assert first.height > 20 * TILE
        assert second.height < 2 * TILE
