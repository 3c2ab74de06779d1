"""Picture files are decoded as people see them, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sldcore.errors import ConfigurationError
from sldcore.filters.picture_files import MOST_FRAMES, MOST_PIXELS, find_pictures, views

RAMP = np.add.outer(np.arange(16) * 8, np.arange(16) * 9).astype(np.uint8)
"""[16, 16], 0 to 255."""


def save(path: Path, picture: Any, **options: Any) -> Path:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, **options)
    return path


def only(path: Path) -> Any:
    (view,) = views(path)
    assert (view.name, view.picture.mode) == ("", "RGB")
    return np.asarray(view.picture)


def named(path: Path) -> dict[str, Any]:
    return {view.name: np.asarray(view.picture) for view in views(path)}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("grey.png", lambda: Image.fromarray(RAMP)),
        ("palette.png", lambda: Image.fromarray(RAMP).convert("P")),
        ("opaque.png", lambda: Image.fromarray(RAMP).convert("RGBA")),
        ("sixteen.png", lambda: Image.fromarray(RAMP.astype(np.uint16) * 257)),
        ("integers.tif", lambda: Image.fromarray(RAMP.astype(np.int32))),
        ("four-colours.tif", lambda: Image.fromarray(RAMP).convert("CMYK")),
    ],
)
def test_a_picture_of_any_depth_is_rgb_with_its_own_brightness(
    tmp_path: Path, name: str, make: Callable[[], Image.Image]
) -> None:
    pixels = only(save(tmp_path / name, make()))
    assert np.abs(pixels.astype(int) - RAMP[..., None]).max() <= 1


def test_twelve_bits_in_sixteen_are_not_black(tmp_path: Path) -> None:
    pixels = only(save(tmp_path / "x.png", RAMP.astype(np.uint16) * 16))
    assert np.abs(pixels.astype(int) - RAMP[..., None]).max() <= 1


@pytest.mark.parametrize("values", [(0.0, 1.0), (-3.0, 5.0)])
def test_floats_span_black_to_white(tmp_path: Path, values: tuple[float, float]) -> None:
    pixels = only(save(tmp_path / "x.tif", np.array([values], dtype=np.float32)))
    assert pixels[0, :, 0].tolist() == [0, 255]


def test_floats_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    file = save(tmp_path / "x.tif", np.array([[0.0, np.nan]], dtype=np.float32))
    with pytest.raises(ValueError, match="no finite numbers"):
        list(views(file))


def test_a_turned_photo_is_reviewed_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    file = save(tmp_path / "x.png", np.stack([RAMP[:4]] * 3, axis=-1), exif=exif)
    assert np.array_equal(only(file), np.rot90(np.stack([RAMP[:4]] * 3, axis=-1), -1))


def test_what_is_transparent_is_seen_on_white_and_on_black(tmp_path: Path) -> None:
    black_letter = np.zeros((2, 2, 4), np.uint8)
    black_letter[0, 0, 3] = (
        255  # all pixels are black: without its transparency the picture is a black square
    )
    seen = named(save(tmp_path / "x.png", black_letter))
    assert {name: picture[..., 0].tolist() for name, picture in seen.items()} == {
        "on white": [[0, 255], [255, 255]],
        "on black": [[0, 0], [0, 0]],
    }


def test_the_transparent_colour_of_a_palette_is_transparent(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    file = save(tmp_path / "x.png", palette, transparency=0)
    assert named(file)["on white"].tolist() == [[[255, 255, 255], [0, 255, 0]]]


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_every_frame_is_seen(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black", "white")]
    file = tmp_path / f"x.{suffix}"
    frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True)
    seen = {name: picture.mean() for name, picture in named(file).items()}
    assert seen == {"frame 1": 255, "frame 2": 0, "frame 3": 255}


def test_more_frames_than_are_reviewed_are_an_error(tmp_path: Path) -> None:
    frames = [Image.new("L", (1, 1), number % 2) for number in range(MOST_FRAMES + 1)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="101 frames"):
        next(views(tmp_path / "x.tif"))


@pytest.mark.parametrize("limit", [63, None])
def test_a_decompression_bomb_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr("sldcore.filters.picture_files.MOST_PIXELS", 63)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # None: somebody has switched Pillow's own off
    file = save(tmp_path / "x.png", np.zeros((8, 8), np.uint8))
    with pytest.raises((Image.DecompressionBombWarning, Image.DecompressionBombError)):
        list(views(file))


def test_pillow_s_own_limit_is_kept() -> None:
    assert Image.MAX_IMAGE_PIXELS == MOST_PIXELS


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\nbroken"])
def test_a_file_that_is_no_picture_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(OSError, match="cannot identify"):
        list(views(tmp_path / "x.png"))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_that_ends_too_early_is_an_error(tmp_path: Path, suffix: str) -> None:
    whole = save(
        tmp_path / f"x.{suffix}", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    )
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(OSError, match="truncated"):
        list(views(whole))


def test_files_for_which_pillow_would_run_another_program_are_not_read(tmp_path: Path) -> None:
    save(tmp_path / "x.eps", np.zeros((4, 4), np.uint8))
    with pytest.raises(OSError, match="cannot identify"):
        list(views(tmp_path / "x.eps"))


def test_folders_are_searched_for_pictures_whatever_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    png = save(tmp_path / "sub" / "a.png", RAMP)
    hidden = png.rename(tmp_path / "sub" / "holiday.txt")
    broken = tmp_path / "broken.JPG"
    broken.write_text("no picture")
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    assert find_pictures([tmp_path]) == ([broken, hidden], [notes])


def test_a_file_that_is_named_is_taken_as_it_is(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture")
    assert find_pictures([notes]) == ([notes], [])


def test_files_come_once_in_the_order_in_which_they_are_asked_for(tmp_path: Path) -> None:
    b, a = (save(tmp_path / name, RAMP) for name in ("b.png", "a.png"))
    assert find_pictures([b, tmp_path, b]) == ([b, a], [])


def test_own_files_are_left_out_of_folders_alone(tmp_path: Path) -> None:
    mine, other = save(tmp_path / "mine.png", RAMP), save(tmp_path / "other.png", RAMP)
    assert find_pictures([tmp_path], [mine]) == ([other], [])
    assert find_pictures([mine], [mine]) == ([mine], [])


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.png is neither a file nor a folder"):
        find_pictures([tmp_path / "gone.png"])


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no picture in"):
        find_pictures([tmp_path])


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with pytest.raises(ConfigurationError, match="there is no picture in"):
        find_pictures([tmp_path])
