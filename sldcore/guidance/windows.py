"""When guidance acts: windows in steps, in fraction of the run, or in noise level, and those that plugins contribute.

A window is a function from step to strength in 0..1, evaluated for all steps before the first one. The paper counts warm-up
in steps, which makes its weak preset a silent no-op in runs of 15 steps or fewer. Here a window that never opens is an
error.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Final

from pydantic import Field

from sldcore.catalogue import checked_options, current
from sldcore.contributions import WindowKind
from sldcore.documents import Strict
from sldcore.errors import GuidanceError, PluginError
from sldcore.policy import Window
from sldcore.policy_parts import RANGE_UNITS
from sldcore.types import Schedule, Step

Strength = Callable[[Step], float]


class Span(Strict):
    """Options of the core's windows: where they open and close, in their unit."""

    start: float = Field(examples=[0.0])
    stop: float | None = Field(examples=[None])


def in_steps(span: Span) -> Strength:
    """Open at denoiser calls with start <= index < stop."""
    return lambda step: _rising(span, step.index)


def in_fraction(span: Span) -> Strength:
    """Open where start <= index / total < stop."""
    return lambda step: _rising(span, step.fraction)


def in_noise(span: Span) -> Strength:
    """Open at noise levels with stop < level <= start."""
    return lambda step: float(
        step.noise_level <= span.start and (span.stop is None or span.stop < step.noise_level)
    )


def _rising(span: Span, position: float) -> float:
    return float(span.start <= position and (span.stop is None or position < span.stop))


CORE_WINDOWS: Final[dict[str, Callable[[Span], Strength]]] = {
    "steps": in_steps,
    "fraction": in_fraction,
    "noise": in_noise,
}


def strength_of(window: Window) -> Strength:
    """The function that ``window`` names, with its options checked.

    Raises:
        PluginError: there is no such window, or it does not take these options.
    """
    kind = current().find(WindowKind, window.unit)
    given = {"start": window.start, "stop": window.stop} if window.unit in RANGE_UNITS else window.options
    strength = kind.create(checked_options(kind, given))
    if not callable(strength):
        raise PluginError(
            f"window '{window.unit}' is broken: its factory gave {type(strength).__name__}, no function of the step"
        )
    return strength


def acting_steps(window: Window, schedule: Schedule) -> tuple[float, ...]:
    """For each denoiser call of the run, how strongly guidance acts, 0 to 1.

    Raises:
        GuidanceError: it acts at none (the message names the alternatives), or a strength is out of range.
        PluginError: as :func:`strength_of`.
    """
    strength = strength_of(window)
    acting = tuple(_at(window, strength, schedule.step(index)) for index in range(len(schedule)))
    for index, value in enumerate(acting):
        if not isfinite(value) or not 0 <= value <= 1:
            raise GuidanceError(
                f"window '{window.unit}' gives strength {value} at step {index}; it must be in 0..1"
            )
    if not any(acting):
        raise GuidanceError(_never_opens(window, schedule))
    return acting


def _at(window: Window, strength: Strength, step: Step) -> float:
    try:
        return float(strength(step))
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"window '{window.unit}' is broken: {type(error).__name__} at step {step.index}: {error}"
        ) from error


def _never_opens(window: Window, schedule: Schedule) -> str:
    total = len(schedule)
    if window.unit == "steps" and window.start >= total:
        return (
            f"guidance starts at step {window.start:g}, but the run makes only {total} denoiser calls, so it would "
            f"never act. Use more than {window.start:g} steps, a preset with a shorter warm-up (max has none), or a "
            f"window in fraction of the run (unit: fraction, start: {min(window.start / 50, 0.9):g}) or in noise level "
            f"(unit: noise)"
        )
    levels = f"{schedule.noise_levels[0]:.3f} to {schedule.noise_levels[-1]:.3f}"
    stop = "the end" if window.stop is None else f"{window.stop:g}"
    return (
        f"the guidance window from {window.start:g} to {stop} ({window.unit}) contains none of the run's {total} "
        f"denoiser calls, whose noise levels go from {levels}. Widen the window or use more steps"
    )
