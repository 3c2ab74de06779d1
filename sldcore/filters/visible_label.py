"""A mark that people can see: a line of text in a corner of the picture, on a band that keeps it readable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field, field_validator

from sldcore import __version__
from sldcore.contributions import MarkKind
from sldcore.documents import Strict
from sldcore.errors import ConfigurationError
from sldcore.filters.base import PictureContext

if TYPE_CHECKING:
    from PIL import Image, ImageFont

NAME: Final = "visible-label"
SMALLEST: Final = 8
"""Height of letters in pixels below which nobody can read them."""

NARROWEST: Final = 0.6
"""How much a line may be squeezed sideways before the picture counts as too small for it."""


class LabelOptions(Strict):
    """What the label says, where it stands, and how large it is."""

    text: str = Field(default="AI generated", min_length=1, max_length=200)
    corner: Literal["bottom-right", "bottom-left", "top-right", "top-left"] = "bottom-right"
    size: float = Field(
        default=0.05, gt=0, le=0.5, description="height of letters as a part of the picture's"
    )
    font: str | None = Field(
        default=None, description="a font file, for letters that Pillow's own font lacks"
    )

    @field_validator("text")
    @classmethod
    def _one_line(cls, text: str) -> str:
        text = " ".join(text.split())
        if not text:
            raise ValueError("the text of the label is blank; say what people shall read")
        return text


class VisibleLabel:
    """Writes its text into a corner of each picture."""

    name, version = NAME, __version__

    def __init__(self, options: LabelOptions) -> None:
        self._options = options
        _check_letters(options.text, _font(options.font, 32))

    def mark(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Image.Image]:
        """The labelled pictures, RGB.

        Raises:
            ValueError: a picture is too small for a label that can be read.
        """
        return [self._labelled(picture) for picture in pictures]

    def _labelled(self, picture: Image.Image) -> Image.Image:
        label = self._label(picture.width, picture.height)
        left = picture.width - label.width if self._options.corner.endswith("right") else 0
        top = picture.height - label.height if self._options.corner.startswith("bottom") else 0
        marked = picture.convert("RGB")
        marked = marked.copy() if marked is picture else marked
        marked.paste(label, (left, top))
        return marked

    def _label(self, width: int, height: int) -> Image.Image:
        """The label for a picture of this size: white on black, squeezed a little if the picture is narrow."""
        for letters in (max(SMALLEST, round(self._options.size * height)), SMALLEST):
            label = _written(self._options.text, _font(self._options.font, letters))
            if label.height <= height and label.width * NARROWEST <= width:
                return label.resize((min(label.width, width), label.height))
        raise ValueError(
            f"a picture of {width} x {height} is too small for the label '{self._options.text}', which takes "
            f"{round(label.width * NARROWEST)} x {label.height}; give a shorter text, or draw a larger picture"
        )


def _written(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """White text on a black band with a margin."""
    from PIL import Image, ImageDraw

    margin = max(1, round(font.size / 5))
    left, top, right, bottom = font.getbbox(text)
    band = Image.new("RGB", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin))
    ImageDraw.Draw(band).text((margin - left, margin - top), text, fill="white", font=font)
    return band


def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    try:
        font = ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)
    except (OSError, ImportError) as problem:
        what = "Pillow's own font" if path is None else path
        raise ConfigurationError(
            f"{NAME} cannot read {what} ({problem}); give a TrueType or OpenType file as 'font'"
        ) from None
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ConfigurationError(
            f"{NAME} needs a Pillow that was built with FreeType; install Pillow's wheel"
        )
    return font


def _check_letters(text: str, font: ImageFont.FreeTypeFont) -> None:
    """Refuse letters of which people would see only boxes.

    Raises:
        ConfigurationError: the font lacks a letter of the text.
    """
    missing = bytes(font.getmask("\U0010ffff"))
    for letter in sorted(set(text)):
        if not letter.isspace() and bytes(font.getmask(letter)) == missing:
            raise ConfigurationError(
                f"the font of {NAME} has no '{letter}' (U+{ord(letter):04X}) for the label '{text}'; "
                f"give a font file that has it as 'font'"
            )


KIND: Final = MarkKind(
    name=NAME,
    description="a line of text in a corner that people can read",
    options=LabelOptions,
    create=VisibleLabel,
)
"""A visible label as a mark."""
