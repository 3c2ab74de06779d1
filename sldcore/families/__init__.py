"""Families: the small adapters that know how a kind of pipeline calls its denoiser and encodes text."""

from __future__ import annotations

from typing import Any, Final

from sldcore.errors import UnsupportedPipelineError, listed
from sldcore.families.base import Family
from sldcore.families.sd import StableDiffusion

FAMILIES: Final[tuple[Family, ...]] = (StableDiffusion(),)


def family_of(pipe: Any) -> Family:
    """The family that knows ``pipe``'s class, or the nearest of its base classes.

    Raises:
        UnsupportedPipelineError: there is none.
    """
    for base in type(pipe).__mro__:
        for family in FAMILIES:
            if base.__name__ in family.pipelines:
                return family
    supported = listed(name for family in FAMILIES for name in family.pipelines)
    raise UnsupportedPipelineError(
        f"no family knows {type(pipe).__name__}, so nothing can guide it. Supported classes: {supported}. Another "
        f"class that calls its denoiser with [uncond; cond] needs an object with the methods of "
        f"sldcore.families.base.Family"
    )
