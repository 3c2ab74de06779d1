"""Pictures of clients, to be reviewed: taken from data URLs, measured before they are decoded, and decoded in full.

Only PNG, JPEG and WebP with one frame are taken, whatever the data URL calls them; animations are refused, so that it is
always clear what was looked at. What is handed on is what came, byte for byte. Nothing is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
import re
from io import BytesIO
from typing import Final

from PIL import Image

from sldcore.service.http.errors import ServiceError, invalid

FORMATS: Final = ("PNG", "JPEG", "WEBP")
MOST_SIDE: Final = 16384

_FRAME_HEADERS: Final = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_DATA_URL: Final = re.compile(r"data:image/(png|jpe?g|webp);base64,", re.IGNORECASE)


def picture_of(url: str, most_pixels: int, param: str) -> bytes:
    """The content of a data URL's picture, of at most ``most_pixels``.

    Decoding takes a moment: call it in a thread.

    Raises:
        ServiceError: 400.
    """
    if not (start := _DATA_URL.match(url)):
        raise invalid(
            f"{param} must be a data URL (data:image/png;base64,... or jpeg, webp): nothing is fetched from elsewhere",
            param,
            "invalid_image_url",
        )
    try:
        content = base64.b64decode(url[start.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise invalid(f"{param} is not base64 after the comma", param, "invalid_base64") from None
    check_picture(content, most_pixels, param)
    return content


def check_picture(content: bytes, most_pixels: int, param: str) -> None:
    """Refuse what is no whole picture of one frame, or has too many pixels; these are known before anything is decoded.

    Raises:
        ServiceError: 400.
    """
    declared = _declared_size(content)
    if declared is None:
        message = f"{param} is neither PNG, JPEG nor WebP, whatever its data URL says"
        raise invalid(message, param, "invalid_image_format")
    _check_size(declared, most_pixels, param)
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            _check_size(picture.size, most_pixels, param)
            if getattr(picture, "n_frames", 1) != 1:
                message = f"{param} has several frames; send them one by one"
                raise invalid(message, param, "animated_image")
            picture.load()
    except ServiceError:
        raise
    except Exception:  # decoders raise all sorts of things over broken files
        message = f"{param} is broken: it cannot be decoded to its end"
        raise invalid(message, param, "invalid_image") from None


def _declared_size(content: bytes) -> tuple[int, int] | None:
    """Width and height as the file's header says; None if it is no file of ours."""
    if content.startswith(b"\x89PNG\r\n\x1a\n") and content[12:16] == b"IHDR":
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        # Pillow makes room for a WebP's pixels when it opens it.
        return _webp_size(content[12:16], content[20:30])
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg_size(content)
    return None


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """ISO/IEC 10918-1, B.2: of the first frame header; (0, 0) if there is none."""
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in _FRAME_HEADERS:
            height, width = (int.from_bytes(content[at + first : at + first + 2], "big") for first in (5, 7))
            return width, height
        if marker == 0xFF:  # fill
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a length
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return 0, 0


def _webp_size(chunk: bytes, header: bytes) -> tuple[int, int]:
    """https://developers.google.com/speed/webp/docs/riff_container and RFC 6386, 9.1; (0, 0) for an unknown kind."""
    if chunk == b"VP8X":
        return int.from_bytes(header[4:7], "little") + 1, int.from_bytes(header[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        return int.from_bytes(header[6:8], "little") & 0x3FFF, int.from_bytes(header[8:10], "little") & 0x3FFF
    return 0, 0


def _check_size(size: tuple[int, int], most_pixels: int, param: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise invalid(f"{param} is broken: its header gives no size", param, "invalid_image")
    if width * height > most_pixels or max(size) > MOST_SIDE:
        message = (
            f"{param} has {width} x {height} pixels, and at most {most_pixels:,} are allowed, "
            f"{MOST_SIDE:,} along a side"
        )
        raise invalid(message, param, "image_too_large")
