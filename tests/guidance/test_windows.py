"""When windows are open, and what is said about those that never are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sldcore.errors import GuidanceError
from sldcore.guidance.windows import acting_steps
from sldcore.policy import SafetyPolicy, Window
from sldcore.types import Schedule


def schedule(levels: Sequence[float]) -> Schedule:
    timesteps = tuple(1000 * level for level in levels)
    return Schedule(timesteps, tuple(levels), (1.0,) * len(levels))


def falling(steps: int) -> Schedule:
    """Noise levels 1, (steps - 1) / steps, ..., 1 / steps."""
    return schedule([(steps - index) / steps for index in range(steps)])


def open_at(window: Window, steps: int) -> list[int]:
    return [index for index, act in enumerate(acting_steps(window, falling(steps))) if act]


def test_the_default_window_is_always_open() -> None:
    assert open_at(Window(), 5) == [0, 1, 2, 3, 4]


def test_steps_count_from_start_up_to_but_not_including_stop() -> None:
    assert open_at(Window(start=2, stop=5), 8) == [2, 3, 4]


def test_steps_beyond_the_run_do_no_harm_as_a_stop() -> None:
    assert open_at(Window(start=6, stop=100), 8) == [6, 7]


def test_a_fraction_scales_with_the_run() -> None:
    window = Window(unit="fraction", start=0.2, stop=0.6)
    assert (open_at(window, 5), open_at(window, 10)) == ([1, 2], [2, 3, 4, 5])


def test_a_noise_window_includes_its_start_and_excludes_its_stop() -> None:
    assert open_at(Window(unit="noise", start=0.8, stop=0.4), 10) == [2, 3, 4, 5]


def test_a_noise_window_starts_at_pure_noise_by_default() -> None:
    assert open_at(Window(unit="noise", stop=0.5), 4) == [0, 1]


def test_a_noise_window_without_stop_lasts_to_the_end_even_of_a_schedule_that_ends_clean() -> None:
    acting = acting_steps(Window(unit="noise", start=0.6), schedule([1.0, 0.5, 0.0]))
    assert acting == (False, True, True)


def test_repeated_noise_levels_are_judged_alike() -> None:
    acting = acting_steps(Window(unit="noise", start=0.8, stop=0.3), schedule([1, 0.8, 0.8, 0.4, 0.4, 0.3]))
    assert acting == (False, True, True, True, True, False)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    unit = draw(st.sampled_from(["steps", "fraction", "noise"]))
    number = st.integers(0, 30) if unit == "steps" else st.floats(0, 1)
    ends = sorted(draw(st.lists(number, min_size=2, max_size=2, unique=True)), reverse=unit == "noise")
    return Window(unit=unit, start=ends[0], stop=draw(st.sampled_from([ends[1], None])))


@settings(deadline=None)
@given(window=windows(), levels=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_over_falling_noise_every_window_opens_once_or_is_refused(
    window: Window, levels: list[float]
) -> None:
    try:
        acting = acting_steps(window, schedule(sorted(levels, reverse=True)))
    except GuidanceError:
        return
    indices = [index for index, act in enumerate(acting) if act]
    assert indices == list(range(indices[0], indices[-1] + 1))


@settings(deadline=None)
@given(steps=st.integers(1, 40), start=st.integers(0, 60))
def test_a_warm_up_is_refused_exactly_if_it_is_not_shorter_than_the_run(steps: int, start: int) -> None:
    if start < steps:
        assert open_at(Window(start=start), steps) == list(range(start, steps))
    else:
        with pytest.raises(GuidanceError):
            acting_steps(Window(start=start), falling(steps))


def test_weak_acts_once_in_sixteen_steps() -> None:
    guidance = SafetyPolicy.preset("weak").guidance
    assert guidance is not None
    assert open_at(guidance.window, 16) == [15]


def test_weak_in_fifteen_steps_is_an_error_that_names_the_ways_out() -> None:
    guidance = SafetyPolicy.preset("weak").guidance
    assert guidance is not None
    with pytest.raises(GuidanceError) as refused:
        acting_steps(guidance.window, falling(15))
    message = str(refused.value)
    for part in (
        "step 15",
        "15 denoiser calls",
        "more than 15 steps",
        "shorter warm-up",
        "unit: fraction",
        "unit: noise",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("window", "told"),
    [
        (Window(unit="fraction", start=0.95), "from 0.95 to the end (fraction)"),
        (Window(unit="noise", start=0.05), "from 0.05 to the end (noise)"),
        (Window(unit="noise", start=0.49, stop=0.41), "from 0.49 to 0.41 (noise)"),
    ],
)
def test_a_window_between_two_calls_is_an_error_that_tells_the_runs_noise_levels(
    window: Window, told: str
) -> None:
    with pytest.raises(GuidanceError) as refused:
        acting_steps(window, falling(10))
    message = str(refused.value)
    for part in (told, "10 denoiser calls", "1.000 to 0.100", "Widen the window or use more steps"):
        assert part in message
