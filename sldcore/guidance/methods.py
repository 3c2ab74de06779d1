"""The guidance methods that policies can name."""

from __future__ import annotations

from typing import Final

from sldcore.errors import GuidanceError, listed, nearest
from sldcore.guidance.base import Guidance
from sldcore.guidance.sld import SLD

METHODS: Final[dict[str, Guidance]] = {method.name: method for method in (SLD(),)}


def method_named(name: str) -> Guidance:
    """The method called ``name``.

    Raises:
        GuidanceError: there is none.
    """
    if name not in METHODS:
        raise GuidanceError(
            f"no guidance method is called '{name}'{nearest(name, METHODS)}; available: {listed(METHODS)}"
        )
    return METHODS[name]
