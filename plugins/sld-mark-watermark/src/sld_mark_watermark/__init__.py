"""Mark ``watermark``: a few invisible bytes in every picture that is shown; and a command that reads them.

A policy says ``marks: [watermark]``. The bytes are put into the picture as the package invisible-watermark does it with its method
dwtDctSvd, so that its decoder reads them too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, field_validator

from sldcore.contributions import Command, MarkKind
from sldcore.documents import Strict
from sldcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from sldcore.filters.base import Mark

SLD_API: Final = 1
__version__ = "0.1.0"

PAYLOAD: Final = "AIGC"
"""What pictures are marked with unless a policy says otherwise: AI-generated content."""

SHORTEST: Final = 2
LONGEST: Final = 16
"""Bytes of a payload: fewer are found by chance, more do not survive in a small picture."""


class WatermarkOptions(Strict):
    """Options of the mark ``watermark``: ``payload`` is a text of 2 to 16 bytes in UTF-8."""

    payload: str = Field(default=PAYLOAD, max_length=LONGEST)

    @field_validator("payload")
    @classmethod
    def _fits(cls, payload: str) -> str:
        size = len(payload.encode())
        if not SHORTEST <= size <= LONGEST:
            raise ValueError(
                f"a payload has {SHORTEST} to {LONGEST} bytes, and '{payload}' has {size}; give another text"
            )
        return payload


def _create(options: WatermarkOptions) -> Mark:
    from sld_mark_watermark.watermark import Watermark

    return Watermark(options)


def _command() -> Any:
    from sld_mark_watermark.command import app

    return app


@hookimpl
def sld_marks() -> list[MarkKind]:
    """The mark."""
    description = "a few invisible bytes that survive saving as JPEG"
    return [MarkKind(name="watermark", description=description, options=WatermarkOptions, create=_create)]


@hookimpl
def sld_commands() -> list[Command]:
    """The command that looks for marks."""
    return [
        Command(name="watermark", description="look for invisible watermarks in pictures", create=_command)
    ]
