"""Filter ``hash-blocklist``: pictures that look like known ones, by perceptual hashes; and a command that makes the list.

A policy says ``filters: [{use: hash-blocklist, options: {file: known.txt}}]``. The list holds hashes and no pictures, so it may
be kept where the pictures must not be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from sldcore.contributions import Command, PostFilterKind
from sldcore.documents import Strict
from sldcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from sldcore.filters.base import PostFilter

SLD_API: Final = 1
__version__ = "0.1.0"

Algorithm = Literal["phash", "dhash", "ahash"]


class BlocklistOptions(Strict):
    """Options of the filter ``hash-blocklist``.

    ``file`` is the list, one hash in hexadecimal digits per line. ``radius`` is how many bits of a hash may differ. ``algorithm``
    made the hashes; left out, it is what the list says, and phash if that says nothing. ``mirrored``: also look for the pictures
    of the list mirrored left to right.
    """

    file: str = Field(min_length=1)
    radius: int = Field(default=6, ge=0, strict=True)
    algorithm: Algorithm | None = None
    mirrored: bool = True


def _create(options: BlocklistOptions) -> PostFilter:
    from sld_filter_hash_blocklist.detector import HashBlocklist

    return HashBlocklist(options)


def _command() -> Any:
    from sld_filter_hash_blocklist.command import app

    return app


@hookimpl
def sld_post_filters() -> list[PostFilterKind]:
    """The filter."""
    description = "pictures that look like known ones, by perceptual hashes"
    return [
        PostFilterKind(
            name="hash-blocklist", description=description, options=BlocklistOptions, create=_create
        )
    ]


@hookimpl
def sld_commands() -> list[Command]:
    """The command that makes lists."""
    return [
        Command(
            name="hash-blocklist", description="make lists for the filter hash-blocklist", create=_command
        )
    ]
