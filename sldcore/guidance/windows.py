"""When guidance acts: windows in steps, in fraction of the run, or in noise level.

The paper counts warm-up in steps, which makes its weak preset a silent no-op in runs of 15 steps or fewer. Here a
window that never opens is an error.
"""

from __future__ import annotations

from sldcore.errors import GuidanceError
from sldcore.policy import Window
from sldcore.types import Schedule, Step


def acting_steps(window: Window, schedule: Schedule) -> tuple[bool, ...]:
    """For each denoiser call of the run, whether ``window`` is open.

    Raises:
        GuidanceError: it is open at none; the message names the alternatives.
    """
    acting = tuple(_is_open(window, schedule.step(index)) for index in range(len(schedule)))
    if not any(acting):
        raise GuidanceError(_never_opens(window, schedule))
    return acting


def _is_open(window: Window, step: Step) -> bool:
    if window.unit == "noise":
        return step.noise_level <= window.start and (window.stop is None or window.stop < step.noise_level)
    position = step.index if window.unit == "steps" else step.fraction
    return window.start <= position and (window.stop is None or position < window.stop)


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
