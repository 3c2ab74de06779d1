from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import Any

import pytest
import sld_schedules
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sld_schedules import NoiseRamp, Ramp

from sldcore import SafetyEngine, SafetyPolicy
from sldcore.catalogue import checked_options
from sldcore.errors import PluginError
from sldcore.policy import ConceptUse, GuidanceSpec, Options, Window
from sldcore.types import Step

KINDS = {kind.name: kind for kind in sld_schedules.sld_windows()}


def strengths(kind: str, positions: list[float], **options: Any) -> list[float]:
    """Strength at fractions of the run, or at noise levels."""
    window = KINDS[kind].create(checked_options(KINDS[kind], options))
    return [window(Step(round(1000 * at), 1000, 0.0, at)) for at in positions]


def test_a_linear_ramp_rises_in_a_straight_line_between_its_ends() -> None:
    found = strengths("linear-ramp", [0.0, 0.2, 0.3, 0.5, 0.6, 0.9], start=0.2, stop=0.6)
    assert found == pytest.approx([0, 0, 0.25, 0.75, 1, 1])


def test_a_cosine_ramp_is_half_a_cosine_between_its_ends() -> None:
    found = strengths("cosine-ramp", [0.0, 0.25, 0.5, 0.75, 0.9], stop=1.0)
    assert found == pytest.approx(
        [0, (1 - cos(pi / 4)) / 2, 0.5, (1 + cos(pi / 4)) / 2, (1 - cos(0.9 * pi)) / 2]
    )


def test_a_falling_ramp_goes_from_one_to_zero() -> None:
    assert strengths("linear-ramp", [0.0, 0.25, 0.75, 1.0], direction="fall") == pytest.approx(
        [1, 0.75, 0.25, 0]
    )


def test_a_ramp_stays_between_low_and_high() -> None:
    found = strengths("linear-ramp", [0.0, 0.5, 1.0], direction="fall", low=0.2, high=0.6)
    assert found == pytest.approx([0.6, 0.4, 0.2])


def test_a_noise_ramp_rises_while_the_noise_falls() -> None:
    found = strengths("noise-ramp", [1.0, 0.9, 0.7, 0.5, 0.1], start=0.9, stop=0.5)
    assert found == pytest.approx([0, 0, 0.5, 1, 1])


def test_a_noise_ramp_can_be_half_a_cosine() -> None:
    found = strengths("noise-ramp", [1.0, 0.75, 0.0], shape="cosine", direction="fall")
    assert found == pytest.approx([1, (1 + cos(pi / 4)) / 2, 0])


@given(
    kind=st.sampled_from(sorted(KINDS)),
    ends=st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True).map(sorted),
    levels=st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True).map(sorted),
    direction=st.sampled_from(["rise", "fall"]),
    positions=st.lists(st.floats(0, 1), min_size=2, max_size=9).map(sorted),
)
def test_strength_is_monotone_and_never_leaves_its_levels(
    kind: str, ends: list[float], levels: list[float], direction: str, positions: list[float]
) -> None:
    start, stop = ends[::-1] if kind == "noise-ramp" else ends
    options = {"start": start, "stop": stop, "low": levels[0], "high": levels[1], "direction": direction}
    window = KINDS[kind].create(checked_options(KINDS[kind], options))
    steps = [Step(index, len(positions), 0.0, 1 - at) for index, at in enumerate(positions)]
    found = [window(step) for step in steps]
    assert found == sorted(found, reverse=direction == "fall")
    assert all(levels[0] - 1e-12 <= strength <= levels[1] + 1e-12 for strength in found)


@pytest.mark.parametrize(
    ("model", "wrong", "message"),
    [
        (Ramp, {"start": 0.6, "stop": 0.2}, "must be below stop"),
        (NoiseRamp, {"start": 0.2, "stop": 0.6}, "must be above stop"),
        (Ramp, {"low": 0.5, "high": 0.5}, "must be below high"),
        (Ramp, {"stop": 1.5}, "less than or equal to 1"),
        (Ramp, {"start": True}, "valid number"),
        (Ramp, {"direction": "up"}, "rise"),
        (Ramp, {"shape": "cosine"}, "unknown key"),
    ],
)
def test_options_that_make_no_ramp_are_refused(
    model: type[Ramp], wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        model(**wrong)


def policy(**options: float | str) -> SafetyPolicy:
    window = Window(unit="linear-ramp", options=Options(options))
    return SafetyPolicy(
        concepts=(ConceptUse(text="blood"),),
        guidance=GuidanceSpec(window=window, options=Options({"threshold": 1.0, "momentum_scale": 0.0})),
    )


def test_a_policy_can_name_a_ramp(pipe: Any, plugin_catalogue: Callable[..., None]) -> None:
    plugin_catalogue(*KINDS.values())
    result = SafetyEngine(pipe, policy(start=0.5)).generate(
        "a cat", num_inference_steps=8, guidance_scale=4.0
    )
    assert result.trace.applied[0, 0].tolist() == [False] * 5 + [True] * 3  # strength is still 0 at the fifth


def test_a_policy_with_options_that_make_no_ramp_is_an_error(
    pipe: Any, plugin_catalogue: Callable[..., None]
) -> None:
    plugin_catalogue(*KINDS.values())
    with pytest.raises(PluginError, match="start"):
        SafetyEngine(pipe, policy(start=2.0)).generate("a cat", num_inference_steps=4, guidance_scale=4.0)
