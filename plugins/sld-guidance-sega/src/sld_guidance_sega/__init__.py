"""Semantic Guidance (SEGA, arXiv 2301.12247) for sldcore: guidance method ``sega``.

A policy says ``guidance: {method: sega}``. Windows of the policy and of its concepts are SEGA's warm-up and cool-down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field, field_validator

from sldcore.contributions import GuidanceMethod
from sldcore.documents import Strict
from sldcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from sldcore.guidance.base import Guidance

SLD_API: Final = 1
__version__ = "0.1.0"

Number = Annotated[float, Field(strict=True)]


class SEGAOptions(Strict):
    """Options of the method ``sega``, with the defaults of diffusers' implementation.

    ``scale`` is the edit guidance scale s_e. ``threshold`` is the quantile lambda below which a concept's term is zero, in
    each channel: one number for all concepts, or a text with one number for each concept row, in the policy's order
    (``"0.9, 0.95"``). ``momentum_scale`` is s_m, ``momentum_beta`` beta_m. ``pipeline_guidance_scale`` is the
    ``guidance_scale`` that the pipeline is called with; it is used only where the pipeline's family does not tell it.
    """

    scale: Number = Field(default=5.0, gt=0)
    threshold: Number | str = 0.9
    momentum_scale: Number = Field(default=0.1, ge=0, le=1)
    momentum_beta: Number = Field(default=0.4, ge=0, lt=1)
    pipeline_guidance_scale: Number = Field(default=7.5, gt=1)

    @field_validator("threshold")
    @classmethod
    def _in_range(cls, value: float | str) -> float | str:
        quantiles(value)
        return value


def quantiles(threshold: float | str) -> tuple[float, ...]:
    """The numbers of option ``threshold``.

    Raises:
        ValueError: one of them is not a number in 0..1.
    """
    parts = threshold.split(",") if isinstance(threshold, str) else [threshold]
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        raise ValueError(
            f"expected numbers with commas between, such as '0.9, 0.95', got {threshold!r}"
        ) from None
    if not all(0 <= number <= 1 for number in numbers):
        raise ValueError(f"a threshold is a quantile in 0..1, got {threshold!r}")
    return numbers


def _create() -> Guidance:
    from sld_guidance_sega.sega import SEGA

    return SEGA()


@hookimpl
def sld_guidance_methods() -> list[GuidanceMethod]:
    """The method ``sega``."""
    description = "Semantic Guidance (arXiv 2301.12247): several concepts, quantile thresholds, outside the guidance scale"
    return [GuidanceMethod(name="sega", description=description, options=SEGAOptions, create=_create)]
