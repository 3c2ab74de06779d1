"""Step hooks that are wrong in one way fail the test that is meant for it, and no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from sldcore.contributions import StepHookKind
from sldcore.testing.check import case_of, outcomes
from sldcore.types import Predictions, Step

FORM = "test_edits_have_the_form_of_what_they_replace"
ALONE = "test_a_sample_alone_is_as_in_a_batch"
SAME = "test_the_same_input_gives_the_same_result"
AT_ONCE = "test_two_runs_at_once_do_not_disturb_each_other"
INPUT = "test_the_input_is_not_changed"


class Damp:
    """Makes unconditional and guided predictions a little smaller: a correct hook that edits."""

    name = "damp"
    version = "1.0"
    made = 0

    def __init__(self) -> None:
        Damp.made += 1
        self.number = Damp.made

    def before_guidance(self, step: Step, predictions: Predictions) -> Any:
        return replace(predictions, uncond=predictions.uncond * 0.9)

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        return guided * 0.9


class Observes(Damp):
    def before_guidance(self, step: Step, predictions: Predictions) -> Any:
        return None

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        return None


class EditsInPlace(Observes):
    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        guided.mul_(0.9)


class EditsPredictionsInPlace(Observes):
    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        predictions.cond.mul_(0.9)


class GivesFloat32(Damp):
    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        return guided.float()


class DropsRows(Damp):
    def before_guidance(self, step: Step, predictions: Predictions) -> Any:
        return replace(predictions, rows=predictions.rows[::-1])


class GivesATensor(Damp):
    def before_guidance(self, step: Step, predictions: Predictions) -> Any:
        return predictions.cond


class Overflows(Damp):
    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        return guided * 1e6 / 1e6


class NormalisesOverTheBatch(Damp):
    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        return guided / len(guided)


class DependsOnThePlace(Damp):
    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        places = [1.0 + index for index in range(len(guided))]
        return guided * guided.new_tensor(places).view(-1, 1, 1, 1)


class SpreadsNaN(Damp):
    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        return guided + 0 * guided.mean()


class HidesNaN(Damp):
    def before_guidance(self, step: Step, predictions: Predictions) -> Any:
        return replace(predictions, cond=predictions.cond.nan_to_num())


class DiffersFromHookToHook(Damp):
    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        return guided * (1 + 1e-6 * self.number)


class SharesItsState(Damp):
    latest: Any = None

    def before_guidance(self, step: Step, predictions: Predictions) -> Any:
        if step.index == 0:
            SharesItsState.latest = self

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        return guided * (0.9 if SharesItsState.latest is self else 0.5)


BROKEN: dict[str, tuple[type[Damp], set[str]]] = {
    "edits the guided prediction in place": (EditsInPlace, {INPUT}),
    "edits predictions in place": (EditsPredictionsInPlace, {INPUT}),
    "gives float32 whatever it gets": (GivesFloat32, {FORM}),
    "changes the rows": (DropsRows, {FORM}),
    "overflows in float16": (Overflows, {"test_edits_of_finite_predictions_are_finite"}),
    "normalises over the batch": (NormalisesOverTheBatch, {ALONE}),
    "depends on the place in the batch": (
        DependsOnThePlace,
        {ALONE, "test_the_order_of_a_batch_does_not_matter"},
    ),
    "spreads NaN": (SpreadsNaN, {"test_nan_in_one_sample_does_not_reach_the_others"}),
    "hides NaN": (HidesNaN, {"test_nan_is_not_hidden"}),
    "differs from hook to hook": (DiffersFromHookToHook, {SAME, AT_ONCE}),
    "shares its state": (SharesItsState, {AT_ONCE}),
}


def failing(create: Any) -> set[str]:
    case = case_of(StepHookKind(name="damp", create=create), steps=6)
    return {outcome.test for outcome in outcomes(case) if outcome.failure}


@pytest.mark.parametrize("hook", [Damp, Observes])
def test_a_correct_hook_passes(hook: type[Damp]) -> None:
    assert failing(lambda options: hook()) == set()


@pytest.mark.parametrize(("hook", "tests"), BROKEN.values(), ids=BROKEN)
def test_a_broken_hook_fails_the_test_that_is_meant_for_it(hook: type[Damp], tests: set[str]) -> None:
    assert failing(lambda options: hook()) == tests


def test_one_hook_for_all_runs_fails() -> None:
    hook = Observes()
    assert failing(lambda options: hook) == {"test_each_run_has_a_hook_of_its_own"}


def test_an_edit_of_another_type_is_named() -> None:
    case = case_of(StepHookKind(name="damp", create=lambda options: GivesATensor()), steps=6)
    (said,) = [outcome.failure for outcome in outcomes(case) if outcome.test == FORM]
    assert said == "before_guidance() gave Tensor, not Predictions"
