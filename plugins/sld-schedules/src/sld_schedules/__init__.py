"""Windows in which guidance sets in or fades gradually: ``linear-ramp``, ``cosine-ramp`` and ``noise-ramp``.

A ramp goes from ``low`` to ``high`` between two positions p_0 (``start``) and p_1 (``stop``), and stays there:

    x = clamp((p - p_0) / (p_1 - p_0), 0, 1)       how much of the ramp lies behind position p
    y = x                                          linear
    y = (1 - cos(pi * x)) / 2                      cosine: sets out and arrives gently
    strength = low + (high - low) * y              direction rise
    strength = high - (high - low) * y             direction fall

A position is the fraction of the run (``linear-ramp``, ``cosine-ramp``) or the noise level (``noise-ramp``).
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from sldcore.contributions import WindowKind
from sldcore.documents import Strict
from sldcore.hookspecs import hookimpl
from sldcore.types import Step

SLD_API: Final = 1
__version__ = "0.1.0"

Number = Annotated[float, Field(strict=True, ge=0, le=1)]
Strength = Callable[[Step], float]


class Ramp(Strict):
    """Options of ``linear-ramp`` and ``cosine-ramp``.

    ``start`` and ``stop`` are fractions of the run: 0 is the first step, 1 the end, which no step reaches. ``direction`` says
    whether guidance sets in (``rise``) or fades (``fall``). ``low`` and ``high`` are the strengths at the two ends; guidance
    does not act at all where the strength is 0.
    """

    start: Number = 0.0
    stop: Number = 1.0
    direction: Literal["rise", "fall"] = "rise"
    low: Number = 0.0
    high: Number = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        self._check_ends()
        return self

    def _check_ends(self) -> None:
        if self.start >= self.stop:
            raise ValueError(
                f"start ({self.start:g}) must be below stop ({self.stop:g}): both are fractions of the run"
            )

    def strength(self, position: float, shape: str) -> float:
        """The ramp's strength at a position."""
        x = min(max((position - self.start) / (self.stop - self.start), 0.0), 1.0)
        y = x if shape == "linear" else (1 - cos(pi * x)) / 2
        span = self.high - self.low
        return self.low + span * y if self.direction == "rise" else self.high - span * y


class NoiseRamp(Ramp):
    """Options of ``noise-ramp``.

    ``start`` and ``stop`` are noise levels as in the unit ``noise``: 1 is pure noise and 0 a clean picture. The level falls
    during a run, so ``start`` is the higher one. ``shape`` is ``linear`` or ``cosine``; the rest is as in a ramp over the run.
    """

    start: Number = 1.0
    stop: Number = 0.0
    shape: Literal["linear", "cosine"] = "linear"

    def _check_ends(self) -> None:
        if self.start <= self.stop:
            raise ValueError(
                f"start ({self.start:g}) must be above stop ({self.stop:g}): noise levels fall from 1 to 0 during a run"
            )


def linear_ramp(options: Ramp) -> Strength:
    """Strength in a straight line over the run."""
    return lambda step: options.strength(step.fraction, "linear")


def cosine_ramp(options: Ramp) -> Strength:
    """Strength in half a cosine over the run."""
    return lambda step: options.strength(step.fraction, "cosine")


def noise_ramp(options: NoiseRamp) -> Strength:
    """Strength by noise level, so that it means the same for any number of steps and any scheduler."""
    return lambda step: options.strength(step.noise_level, options.shape)


@hookimpl
def sld_windows() -> list[WindowKind]:
    """The three ramps."""
    return [
        WindowKind(
            name="linear-ramp",
            description="strength rises or falls in a straight line over a part of the run",
            options=Ramp,
            create=linear_ramp,
        ),
        WindowKind(
            name="cosine-ramp",
            description="strength rises or falls in half a cosine over a part of the run",
            options=Ramp,
            create=cosine_ramp,
        ),
        WindowKind(
            name="noise-ramp",
            description="strength rises or falls between two noise levels",
            options=NoiseRamp,
            create=noise_ramp,
        ),
    ]
