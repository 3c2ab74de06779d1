"""Windows and schedulers that are wrong in one way fail the test that is meant for it, and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from sldcore.contributions import SchedulerKind, WindowKind
from sldcore.documents import Strict
from sldcore.errors import GuidanceError
from sldcore.testing.check import case_of, outcomes
from sldcore.types import Step

NUMBERS = "test_strengths_are_numbers_from_0_to_1_at_every_step"
ALONE = "test_a_strength_depends_on_the_step_alone"


def failing(contribution: Any, **attributes: Any) -> set[str]:
    case = case_of(contribution, **attributes)
    return {outcome.test for outcome in outcomes(case) if outcome.failure}


def counting(options: Any) -> Callable[[Step], float]:
    calls = iter(range(10**6))
    return lambda step: min(1.0, next(calls) / 1000)


made: list[int] = []


def differing(options: Any) -> Callable[[Step], float]:
    made.append(1)
    strength = 1 / len(made)
    return lambda step: strength


WINDOWS: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "above 1": (lambda options: lambda step: 1.5, {NUMBERS}),
    "below 0": (lambda options: lambda step: step.noise_level - 0.1, {NUMBERS}),
    "not a number at the first step": (
        lambda options: lambda step: 1.0 if step.index else float("inf"),
        {NUMBERS},
    ),
    "a tensor": (lambda options: lambda step: torch.tensor(1.0), {NUMBERS}),
    "never open": (lambda options: lambda step: 0.0, {"test_it_opens_in_a_run_of_50_steps"}),
    "counts its calls": (counting, {ALONE}),
    "differs from window to window": (differing, {"test_the_same_options_give_the_same_strengths"}),
}


def test_a_correct_window_passes() -> None:
    assert failing(WindowKind(name="ramp", create=lambda options: lambda step: step.fraction)) == set()


@pytest.mark.parametrize(("create", "tests"), WINDOWS.values(), ids=WINDOWS)
def test_a_broken_window_fails_the_test_that_is_meant_for_it(
    create: Callable[[Any], Any], tests: set[str]
) -> None:
    assert failing(WindowKind(name="ramp", create=create)) == tests


def test_options_of_the_case_are_used() -> None:
    class Start(Strict):
        start: float

    kind = WindowKind(
        name="late", options=Start, create=lambda options: lambda step: float(step.fraction >= options.start)
    )
    assert failing(kind, options={"start": 0.5}) == set()
    assert failing(kind, options={"start": 2.0}) == {"test_it_opens_in_a_run_of_50_steps"}


def plain(config: Any, options: Any) -> Any:
    return DDIMScheduler.from_config(config)


def forgetful(config: Any, options: Any) -> Any:
    return DDIMScheduler.from_config({**config, "prediction_type": "epsilon"})


def rising(config: Any, options: Any) -> Any:
    class Rising(DDIMScheduler):  # type: ignore[misc]
        def set_timesteps(self, *arguments: Any, **options: Any) -> None:
            super().set_timesteps(*arguments, **options)
            self.timesteps = self.timesteps.flip(0)

    return Rising.from_config(config)


def without_levels(config: Any, options: Any) -> Any:
    scheduler = DDIMScheduler.from_config(config)
    set_timesteps = scheduler.set_timesteps

    def forget(*arguments: Any, **options: Any) -> None:
        set_timesteps(*arguments, **options)
        if arguments == (10,):
            del scheduler.alphas_cumprod

    scheduler.set_timesteps = forget
    return scheduler


def changing_the_config(config: Any, options: Any) -> Any:
    scheduler = DDIMScheduler.from_config(config)
    if type(config) is dict:
        config["steps_offset"] = 0
    return scheduler


SCHEDULERS: dict[str, tuple[Callable[[Any, Any], Any], set[str]]] = {
    "forgets the prediction type": (forgetful, {"test_it_keeps_what_the_pipeline_was_trained_with"}),
    "goes from picture to noise": (rising, {"test_the_number_of_steps_can_be_chosen"}),
    "has no noise levels": (without_levels, {"test_its_noise_levels_can_be_told"}),
    "changes the config": (changing_the_config, {"test_the_config_it_is_given_is_not_changed"}),
}


def test_a_correct_scheduler_passes() -> None:
    assert failing(SchedulerKind(name="plain", create=plain)) == set()


@pytest.mark.parametrize(("create", "tests"), SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_broken_scheduler_fails_the_test_that_is_meant_for_it(
    create: Callable[[Any, Any], Any], tests: set[str]
) -> None:
    assert failing(SchedulerKind(name="plain", create=create)) == tests


def test_one_scheduler_for_all_runs_fails() -> None:
    from sldcore.testing.contracts.schedules import STABLE_DIFFUSION

    one = plain(dict(STABLE_DIFFUSION), None)
    kind = SchedulerKind(name="plain", create=lambda config, options: one)
    assert failing(kind) == {"test_each_run_has_a_scheduler_of_its_own"}


def test_something_else_than_a_scheduler_is_named() -> None:
    case = case_of(SchedulerKind(name="plain", create=lambda config, options: object()))
    complaints = {outcome.test: outcome.failure for outcome in outcomes(case)}
    assert "object is not a diffusers SchedulerMixin" in complaints["test_it_is_a_scheduler_of_diffusers"]


def test_a_scheduler_for_flow_is_tested_with_a_config_of_flow() -> None:
    def flow(config: Any, options: Any) -> Any:
        if "beta_start" in config:
            raise GuidanceError("only for rectified flow")
        return FlowMatchEulerDiscreteScheduler.from_config(config)

    assert failing(SchedulerKind(name="flow", create=flow)) == set()
