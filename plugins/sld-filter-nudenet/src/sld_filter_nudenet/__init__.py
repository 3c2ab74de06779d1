"""Filter ``nudenet``: body parts with boxes, by an installed NudeNet 3.4.

A policy says ``filters: [{use: nudenet, options: {convention: i2p}}]``. NudeNet and its weights are under the AGPL-3.0; this
distribution holds nothing of either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from sld_filter_nudenet.conventions import ConventionName
from sldcore.contributions import PostFilterKind
from sldcore.documents import Strict
from sldcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from sldcore.filters.base import PostFilter

SLD_API: Final = 1
__version__ = "0.1.0"


class NudeNetOptions(Strict):
    """Options of the filter ``nudenet``.

    ``convention`` says which body parts count, and from which score; ``threshold`` replaces that score. ``channels`` is
    the order of colours that the network is given: NudeNet's own, ``bgr``, on which published figures rest, or ``rgb``.
    ``threads`` is how many threads of the CPU one picture takes.
    """

    convention: ConventionName = "i2p"
    threshold: float | None = Field(default=None, ge=0.25, le=1)
    channels: Literal["bgr", "rgb"] = "bgr"
    threads: int = Field(default=1, ge=1, le=256, strict=True)


def _create(options: NudeNetOptions) -> PostFilter:
    from sld_filter_nudenet.detector import NudeNet

    return NudeNet(options)


@hookimpl
def sld_post_filters() -> list[PostFilterKind]:
    """The detector."""
    description = "exposed body parts, with boxes, by NudeNet (AGPL-3.0)"
    return [PostFilterKind(name="nudenet", description=description, options=NudeNetOptions, create=_create)]
