"""Videos as animated files, and the one picture that stands for a video."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from sldcore.documents import write_bytes_atomically
from sldcore.errors import ConfigurationError

DESCRIPTION: Final = 0x010E
"""The EXIF tag that holds the account of an animation, as JSON."""
QUALITY: Final = 90


def still(shown: Any) -> Image.Image | None:
    """A picture as it is, of a video the frame in the middle; None for what was dropped."""
    if isinstance(shown, list | tuple):
        return shown[len(shown) // 2] if shown else None
    picture: Image.Image | None = shown
    return picture


def save_webp(
    frames: Sequence[Image.Image],
    path: str | Path,
    fps: int,
    account: str = "",
    finish: Callable[[bytes], bytes] = bytes,
) -> None:
    """Write frames as an animated WebP that repeats, in one piece; ``finish`` as in ``provenance.save_png``.

    ``account`` is JSON that :func:`read_account` finds again.

    Raises:
        ConfigurationError: there are no frames, or ``fps`` is not positive.
    """
    if not frames or fps <= 0:
        raise ConfigurationError(
            f"cannot write {len(frames)} frames at {fps} per second; there must be some of each"
        )
    exif = Image.Exif()
    if account:
        exif[DESCRIPTION] = json.dumps(json.loads(account))  # ASCII, as EXIF has it
    first, *others = [frame.convert("RGB") for frame in frames]
    buffer = BytesIO()
    first.save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=others,
        duration=round(1000 / fps),
        loop=0,
        quality=QUALITY,
        exif=exif,
        minimize_size=False,
    )
    write_bytes_atomically(path, finish(buffer.getvalue()))


def read_account(path: str | Path) -> dict[str, Any] | None:
    """The account in an animation that :func:`save_webp` wrote; None if there is none."""
    try:
        with Image.open(path) as image:
            found = json.loads(image.getexif()[DESCRIPTION])
    except (OSError, KeyError, ValueError, TypeError):
        return None
    return found if isinstance(found, dict) else None
