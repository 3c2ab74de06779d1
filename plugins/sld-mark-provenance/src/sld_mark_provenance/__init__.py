"""Mark ``provenance``: signed content credentials (C2PA) that say that a picture was made by AI, by what, under which policy.

A policy says ``marks: [{use: provenance, options: {certificate: chain.pem, key: key.pem}}]``. A signature covers a file, so it is
put on when a picture is saved, and pictures in memory do not bear it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from sldcore.contributions import MarkKind
from sldcore.documents import Strict
from sldcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from sldcore.filters.base import Mark

SLD_API: Final = 1
__version__ = "0.1.0"


class ProvenanceOptions(Strict):
    """Options of the mark ``provenance``.

    ``certificate`` is a PEM file with the signer's certificate and those that vouch for it, in this order; ``key`` is a PEM file
    with its private key (PKCS 8, not encrypted), and ``algorithm`` says what kind of key that is. ``timestamp_url`` is an authority
    that signs the time over the network; nothing is asked if it is left out.
    """

    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"
    timestamp_url: str | None = None


def _create(options: ProvenanceOptions) -> Mark:
    from sld_mark_provenance.mark import Provenance

    return Provenance(options)


@hookimpl
def sld_marks() -> list[MarkKind]:
    """The mark."""
    description = "signed content credentials (C2PA) in files that are saved"
    return [MarkKind(name="provenance", description=description, options=ProvenanceOptions, create=_create)]
