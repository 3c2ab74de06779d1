"""Picture files as filters want them: found in folders, and decoded to everything that somebody who opens one may see.

Whatever cannot be decoded in full raises: a file that was not looked at is never one without findings.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sldcore.errors import ConfigurationError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000", "PPM", "QOI")
"""Kinds of files that are read; not those for which Pillow runs other programs, or that hold several sizes of a picture."""

MOST_PIXELS: Final = 89_478_485
"""Pillow's own limit (``MAX_IMAGE_PIXELS``), kept also where somebody has lifted it."""

MOST_FRAMES: Final = 100

_SUFFIXES: Final = (
    ".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class View:
    """One picture of a file, RGB and upright. ``name`` says which, if the file has several: a frame, a background."""

    name: str
    picture: Image.Image


def find_pictures(paths: Iterable[Path], leave_out: Iterable[Path] = ()) -> tuple[list[Path], list[Path]]:
    """The files to review, in order and each once, and those in folders that are no pictures.

    Files that are named are taken as they are. Folders are searched with all that is in them: what is named like a picture, and
    what begins like one whatever its name. Links to folders are not followed.

    Raises:
        ConfigurationError: A path is neither a file nor a folder, a folder cannot be read, or nothing is found.
    """
    asked = list(paths)
    without = {path.resolve() for path in leave_out}
    pictures: dict[str, Path] = {}
    others: list[Path] = []
    for path in asked:
        if path.is_dir():
            inside = [file for file in _files(path) if file.resolve() not in without]
            judged = [(file, _is_picture(file)) for file in inside]
            found = [file for file, is_picture in judged if is_picture]
            others += [file for file, is_picture in judged if not is_picture]
        elif path.is_file():
            found = [path]
        else:
            raise ConfigurationError(
                f"{path} is neither a file nor a folder; give pictures, or folders that hold some"
            )
        pictures.update(
            {os.path.abspath(file): file for file in found if os.path.abspath(file) not in pictures}
        )
    if not pictures:
        raise ConfigurationError(f"there is no picture in {', '.join(map(str, asked)) or 'nothing'}")
    return list(pictures.values()), others


def views(source: Path | BinaryIO) -> Iterator[View]:
    """Everything that a picture file, or its content, shows: each frame, and what is transparent both on white and on black.

    Raises:
        Exception: Whatever keeps the file from being decoded in full; too many pixels (a decompression bomb) included.
    """
    with _decoding():
        opened = Image.open(source, formats=_formats())
    with opened as image:
        count = getattr(image, "n_frames", 1)
        if count > MOST_FRAMES:
            raise ValueError(f"{count} frames, and at most {MOST_FRAMES} are reviewed")
        for number in range(count):
            with _decoding():
                seen = _frame(image, number)
            frame = f"frame {number + 1}" if count > 1 else ""
            for background, picture in seen:
                yield View(", ".join(part for part in (frame, background) if part), picture)


def _frame(image: Image.Image, number: int) -> list[tuple[str, Image.Image]]:
    if number:
        image.seek(number)
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS or MOST_PIXELS
    if width * height > limit:
        raise Image.DecompressionBombError(f"{width} x {height} pixels, and at most {limit:,} are decoded")
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
        return [("", _shallow(upright).convert("RGB"))]
    if upright.has_transparency_data:
        return _on_backgrounds(upright.convert("RGBA"))
    return [("", upright.convert("RGB"))]


def _on_backgrounds(picture: Image.Image) -> list[tuple[str, Image.Image]]:
    """What may be drawn in the transparency alone shows on one background and not on another."""
    if picture.getchannel("A").getextrema() == (255, 255):
        return [("", picture.convert("RGB"))]
    return [
        (f"on {name}", Image.alpha_composite(Image.new("RGBA", picture.size, name), picture).convert("RGB"))
        for name in ("white", "black")
    ]


def _shallow(picture: Image.Image) -> Image.Image:
    """A grey picture of more than eight bits in eight; Pillow itself would turn all that is brighter than 255 white.

    The scale is the smallest whole number of bits that holds the brightest pixel, so that 12 bits in 16 are not black.
    """
    values = np.asarray(picture).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the file has pixels that are no finite numbers")
    values -= min(0.0, float(values.min()))
    brightest = float(values.max())
    full = brightest if picture.mode == "F" else 2.0 ** max(8, int(brightest).bit_length()) - 1
    return Image.fromarray(np.rint(values * (255 / (full or 1.0))).astype(np.uint8))


def _files(folder: Path) -> list[Path]:
    def refuse(problem: OSError) -> None:
        raise ConfigurationError(
            f"cannot read the folder {problem.filename}: {problem.strerror}; what is in it would not be reviewed"
        )

    found = [Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(file for file in found if file.is_file())


def _is_picture(file: Path) -> bool:
    if file.suffix.lower() in _SUFFIXES:
        return True
    try:
        with _decoding(), Image.open(file, formats=_formats()):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # it begins like a picture, and reviewing it says what is wrong
        return True


@cache
def _formats() -> list[str]:
    """Those that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _decoding() -> Iterator[None]:
    """Pillow's remarks on odd files left out, and its warning of a decompression bomb an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
