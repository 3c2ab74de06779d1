"""Guidance methods that are wrong in one way fail the test that is meant for it, and no other."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from sldcore.contributions import GuidanceMethod
from sldcore.guidance.base import GuidedSample
from sldcore.testing.check import case_of, outcomes
from sldcore.types import Guided, Predictions, Row, Schedule, Step


class AwayRun:
    """c' = c - sum of w (e_S - e_u) / 10 over the concepts that act: a correct method."""

    def __init__(self, samples: Sequence[GuidedSample], method: Any) -> None:
        self.samples = samples
        self.method = method

    def factors(self, step: Step) -> dict[Row, float]:
        found = {}
        for sample in self.samples:
            for number, concept in enumerate(sample.concepts):
                factor = sample.weights[number] * sample.acting[step.index]
                factor *= sample.strengths[number] if sample.strengths else 1.0
                factor *= sample.concept_acting[number][step.index] if sample.concept_acting else 1.0
                found[Row(sample.index, concept)] = factor / 10
        return {row: factor for row, factor in found.items() if factor}

    def rows(self, step: Step) -> tuple[Row, ...]:
        return tuple(self.factors(step))

    def terms(self, step: Step, given: Predictions) -> Tensor:
        factors = self.factors(step)
        return torch.stack(
            [
                factors.get(row, 0.0) * (given.concepts[i] - given.uncond[row.sample])
                for i, row in enumerate(given.rows)
            ]
        )

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        terms = self.terms(step, predictions)
        cond = predictions.cond.clone()
        for term, row in zip(terms, predictions.rows, strict=True):
            cond[row.sample] -= term
        return Guided(cond, terms, tuple({row.sample for row in predictions.rows}))


class Away:
    name = "away"
    version = "1.0"
    run: type[AwayRun] = AwayRun
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.number = self.made
        self.state: Any = None

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> AwayRun:
        return self.run(samples, self)


def away(run: type[AwayRun] = AwayRun, base: type[Away] = Away, **fields: Any) -> GuidanceMethod:
    method = type("Method", (base,), {"run": run})
    return GuidanceMethod(**{"name": "away", "create": method, **fields})


def failing(contribution: GuidanceMethod, **attributes: Any) -> set[str]:
    case = case_of(contribution, **{"steps": 6, **attributes})
    return {outcome.test for outcome in outcomes(case) if outcome.failure}


def changing(change: Callable[[Guided, Step, Predictions], Guided]) -> type[AwayRun]:
    """A run whose results are changed."""

    class Changed(AwayRun):
        def combine(self, step: Step, predictions: Predictions) -> Guided:
            return change(super().combine(step, predictions), step, predictions)

    return Changed


class OverflowsInHalf(AwayRun):
    def terms(self, step: Step, given: Predictions) -> Tensor:
        return super().terms(step, given) * 1e4 * 1e2 / 1e6


class DividesByTheFactor(AwayRun):
    def terms(self, step: Step, given: Predictions) -> Tensor:
        return (
            super().terms(step, given) / step.epsilon_factor
            if step.epsilon_factor == 0
            else super().terms(step, given)
        )


class DependsOnTheSizeOfTheBatch(AwayRun):
    def terms(self, step: Step, given: Predictions) -> Tensor:
        return super().terms(step, given) / len(given.cond)


class DependsOnThePlace(AwayRun):
    def terms(self, step: Step, given: Predictions) -> Tensor:
        places = [1.0 + row.sample for row in given.rows]
        return super().terms(step, given) * torch.tensor(places, dtype=given.cond.dtype).view(-1, 1, 1, 1)


class SpreadsNaN(AwayRun):
    def terms(self, step: Step, given: Predictions) -> Tensor:
        return super().terms(step, given) + 0 * (
            given.cond.mean() + given.uncond.mean() + given.concepts.mean()
        )


class RaisesAtNaN(AwayRun):
    def terms(self, step: Step, given: Predictions) -> Tensor:
        if not all(part.isfinite().all() for part in (given.uncond, given.cond, given.concepts)):
            raise ValueError("NaN")
        return super().terms(step, given)


class HidesNaN(AwayRun):
    def combine(self, step: Step, predictions: Predictions) -> Guided:
        cleaned = [getattr(predictions, part).nan_to_num() for part in ("uncond", "cond", "concepts")]
        return super().combine(step, Predictions(*cleaned, predictions.rows))


class ChangesItsInput(AwayRun):
    def combine(self, step: Step, predictions: Predictions) -> Guided:
        guided = super().combine(step, predictions)
        predictions.uncond.add_(1)
        return guided


class AsksForAConceptOfNobody(AwayRun):
    def rows(self, step: Step) -> tuple[Row, ...]:
        rows = super().rows(step)
        return (*rows, *(Row(sample, 7) for sample in {row.sample for row in rows}))


class AsksTwice(AwayRun):
    def rows(self, step: Step) -> tuple[Row, ...]:
        return super().rows(step) * 2


class AsksForNobody(AwayRun):
    def rows(self, step: Step) -> tuple[Row, ...]:
        return super().rows(step) if self.samples else (Row(0, 0),)


class DoesNothing(AwayRun):
    def rows(self, step: Step) -> tuple[Row, ...]:
        return ()


class IgnoresWeights(AwayRun):
    def factors(self, step: Step) -> dict[Row, float]:
        acting = [sample for sample in self.samples if sample.acting[step.index]]
        return {Row(sample.index, concept): 0.1 for sample in acting for concept in sample.concepts}


class IgnoresWindows(AwayRun):
    def factors(self, step: Step) -> dict[Row, float]:
        return {
            Row(sample.index, concept): 0.1 * weight * (sample.strengths or (1.0, 1.0))[0]
            for sample in self.samples
            for concept, weight in zip(sample.concepts, sample.weights, strict=True)
            if weight and 0 not in sample.strengths
        }


class SaysOfOthersThatTheyChanged(AwayRun):
    def combine(self, step: Step, predictions: Predictions) -> Guided:
        guided = super().combine(step, predictions)
        own = {sample.index for sample in self.samples}
        others = [index for index in range(len(predictions.cond)) if index not in own]
        guided.cond[others] += 1
        return Guided(guided.cond, guided.terms, (*guided.applied, *others))


class CountsMethods(AwayRun):
    def terms(self, step: Step, given: Predictions) -> Tensor:
        return super().terms(step, given) * (1 + 1e-6 * self.method.number)


class KeepsTheRunInTheMethod(AwayRun):
    """The method knows one run, the latest."""

    def __init__(self, samples: Sequence[GuidedSample], method: Any) -> None:
        super().__init__(samples, method)
        method.state = self

    def terms(self, step: Step, given: Predictions) -> Tensor:
        return super().terms(step, given) * (1.0 if self.method.state is self else 2.0)


class RemembersFinishedRuns(AwayRun):
    def __init__(self, samples: Sequence[GuidedSample], method: Any) -> None:
        super().__init__(samples, method)
        self.factor = 2.0 if method.state == "finished" else 1.0

    def terms(self, step: Step, given: Predictions) -> Tensor:
        self.method.state = "finished"
        return super().terms(step, given) * self.factor


ALONE = "test_a_sample_alone_is_as_in_a_batch"
ORDER = "test_the_order_of_a_batch_does_not_matter"
FINITE = "test_results_are_finite_in_float16_and_where_predictions_say_nothing_of_the_noise"
FORM = "test_results_have_the_shape_type_and_place_of_the_predictions"
NAN_SPREADS = "test_nan_in_one_sample_does_not_reach_the_others"
OFF = "test_nothing_changes_at_weight_or_strength_0_or_outside_the_window"
ROWS = "test_rows_are_of_its_own_samples_and_their_concepts"
AT_ONCE = "test_two_runs_at_once_do_not_disturb_each_other"

BROKEN: dict[str, tuple[type[AwayRun], set[str]]] = {
    "overflows in float16": (OverflowsInHalf, {FINITE}),
    "divides by the epsilon factor": (DividesByTheFactor, {FINITE}),
    "float32 whatever it gets": (
        changing(lambda g, s, p: Guided(g.cond.float(), g.terms, g.applied)),
        {FORM},
    ),
    "terms of another shape": (changing(lambda g, s, p: Guided(g.cond, g.terms[:, :1], g.applied)), {FORM}),
    "does not say what it changed": (
        changing(lambda g, s, p: Guided(g.cond, g.terms, ())),
        {"test_it_says_which_samples_it_changed"},
    ),
    "depends on the size of the batch": (DependsOnTheSizeOfTheBatch, {ALONE}),
    "depends on the place in the batch": (DependsOnThePlace, {ALONE, ORDER}),
    "spreads NaN": (SpreadsNaN, {NAN_SPREADS}),
    "raises at NaN": (RaisesAtNaN, {NAN_SPREADS}),
    "hides NaN": (HidesNaN, {"test_nan_is_seen_in_the_result"}),
    "changes its input": (ChangesItsInput, {"test_the_input_is_not_changed"}),
    "asks for a concept that nobody has": (AsksForAConceptOfNobody, {ROWS}),
    "asks for a row twice": (AsksTwice, {ROWS}),
    "asks for rows without samples": (
        AsksForNobody,
        {"test_nothing_is_asked_for_without_samples_or_concepts"},
    ),
    "does nothing": (DoesNothing, {"test_it_changes_what_it_guides"}),
    "ignores weights": (IgnoresWeights, {OFF}),
    "ignores windows": (IgnoresWindows, {OFF}),
    "changes the samples of others": (SaysOfOthersThatTheyChanged, {"test_samples_of_others_are_left_alone"}),
    "differs from method to method": (CountsMethods, {"test_the_same_input_gives_the_same_result", AT_ONCE}),
    "keeps the run in the method": (KeepsTheRunInTheMethod, {AT_ONCE}),
    "remembers finished runs": (RemembersFinishedRuns, {"test_a_run_leaves_nothing_behind_in_the_method"}),
}


def test_a_correct_method_passes() -> None:
    assert failing(away()) == set()


@pytest.mark.parametrize(("run", "tests"), BROKEN.values(), ids=BROKEN)
def test_a_broken_method_fails_the_test_that_is_meant_for_it(run: type[AwayRun], tests: set[str]) -> None:
    assert failing(away(run)) == tests


def test_another_name_than_the_contribution_fails() -> None:
    assert failing(away(name="elsewhere")) == {"test_it_says_its_name_and_version"}


def test_a_method_without_start_is_told_so() -> None:
    class Nothing:
        name, version = "away", "1.0"

    assert "test_it_has_the_methods_of_its_protocol" in failing(away(create=Nothing))


def test_reading_a_pickle_fails() -> None:
    class Unpickles(Away):
        def __init__(self) -> None:
            super().__init__()
            pickle.loads(pickle.dumps(threading.Thread))

    assert failing(away(base=Unpickles)) == {"test_no_pickle_is_read"}


def test_a_pickled_checkpoint_fails(tmp_path: Any) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")

    class Loads(Away):
        def __init__(self) -> None:
            super().__init__()
            torch.load(tmp_path / "weights.pt", weights_only=True)

    assert failing(away(base=Loads)) == {"test_no_pickle_is_read"}


def test_options_that_swallow_unknown_names_fail() -> None:
    class Loose(BaseModel):
        scale: float = 1.0

    assert failing(away(options=Loose)) == {"test_an_unknown_option_is_not_dropped_in_silence"}


def test_a_factory_that_raises_is_one_complaint() -> None:
    def create() -> Any:
        raise RuntimeError("no weights here")

    complaints = [outcome for outcome in outcomes(case_of(away(create=create))) if outcome.failure]
    assert [str(each) for each in complaints] == ["it can be made: RuntimeError: no weights here"]


def test_a_description_of_two_lines_fails() -> None:
    assert failing(away(description="one\ntwo")) == {"test_its_description_is_one_line"}
