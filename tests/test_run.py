"""One run: who is called when, who fails with whom."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sldcore.denoiser import DenoiserCall, forward_signature
from sldcore.encoding import ConceptRow, RunConcepts
from sldcore.errors import GuidanceError, SafetyFailure
from sldcore.guidance import methods
from sldcore.guidance.base import GuidedSample
from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy
from sldcore.run import GuidedRun
from sldcore.types import Guided, Predictions, Row, Schedule, Step

STEPS = 4
PLAN = Schedule((4.0, 3.0, 2.0, 1.0), (0.9, 0.7, 0.4, 0.1), (1.0,) * STEPS)
FAMILY: Any = SimpleNamespace(
    latents_argument="sample", text_arguments=("encoder_hidden_states",), cond_first=False
)


class Denoiser(nn.Module):
    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        return (sample * 0.5 + encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1),)


class Faulty:
    """A guidance method that raises where it is told to."""

    name, version = "faulty", "9.1"

    def __init__(self, where: str) -> None:
        self._where = where

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> Faulty:
        self._fail("start")
        self._samples = [sample.index for sample in samples]
        return self

    def rows(self, step: Step) -> tuple[Row, ...]:
        self._fail("rows")
        return tuple(Row(sample, 0) for sample in self._samples)

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        self._fail("combine")
        wrong = predictions.cond[:, :1] if self._where == "shape" else predictions.cond
        return Guided(wrong, predictions.concepts, ())

    def _fail(self, here: str) -> None:
        if here == self._where:
            raise ZeroDivisionError("by design")


class Recorder:
    """A step hook that notes its calls and returns what it is given to return."""

    name, version = "recorder", "1.2"

    def __init__(self, before: Any = None, after: Any = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self._before, self._after = before, after

    def before_guidance(self, step: Step, predictions: Predictions) -> Predictions | None:
        self.calls.append(("before", step.index))
        return self._before(predictions) if self._before else None

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor | None:
        self.calls.append(("after", step.index))
        return self._after(guided) if self._after else None


def policy(method: str = "sld", **fields: Any) -> SafetyPolicy:
    return SafetyPolicy(guidance=GuidanceSpec(method=method), concepts=(ConceptUse(text="knives"),), **fields)


OFF = SafetyPolicy()
ACTING = policy()


def run_of(policies: Sequence[SafetyPolicy], hooks: Sequence[Any] = (), strict: bool = False) -> GuidedRun:
    rows = (ConceptRow("knives", "knives", "knives"),)
    used = {each: ((0, 1.0),) if each.guides else () for each in policies}
    return GuidedRun(
        PLAN, policies, RunConcepts(rows, used, {"encoder_hidden_states": torch.ones(1, 5, 8)}), hooks, strict
    )


def drive(run: GuidedRun, batch: int, steps: int = STEPS) -> list[Tensor]:
    """The outputs of a denoising loop."""
    module = Denoiser()
    outputs = []
    for index in range(steps):
        latents = torch.randn(2 * batch, 4, 3, 3, generator=torch.Generator().manual_seed(index))
        text = torch.linspace(-1, 1, 2 * batch).view(-1, 1, 1).expand(-1, 5, 8)
        call = DenoiserCall.bind(FAMILY, forward_signature(module), (latents, torch.tensor(1), text), {})
        outputs.append(run.call(module.forward, call)[0])
    return outputs


def plain(batch: int) -> list[Tensor]:
    return drive(run_of([OFF] * batch), batch)


def test_hooks_are_called_before_and_after_guidance_once_per_call_in_order() -> None:
    first, second = Recorder(), Recorder()
    drive(run_of([ACTING, OFF], [first, second]), 2)
    expected = [(when, index) for index in range(STEPS) for when in ("before", "after")]
    assert first.calls == second.calls == expected


def test_a_hook_that_observes_changes_nothing() -> None:
    seen = drive(run_of([OFF], [Recorder()]), 1)
    assert all(torch.equal(one, two) for one, two in zip(seen, plain(1), strict=True))


def test_a_hook_may_replace_the_guided_prediction_but_not_the_unconditional_one() -> None:
    edited = drive(run_of([OFF], [Recorder(after=lambda guided: guided + 1)]), 1)
    for one, two in zip(edited, plain(1), strict=True):
        assert torch.equal(one[:1], two[:1])
        assert torch.equal(one[1:], two[1:] + 1)


def test_a_hook_may_replace_predictions_before_they_are_combined() -> None:
    def swap(predictions: Predictions) -> Predictions:
        return Predictions(predictions.cond, predictions.uncond, predictions.concepts, predictions.rows)

    edited = drive(run_of([OFF], [Recorder(before=swap)]), 1)
    assert all(torch.equal(one, two.flip(0)) for one, two in zip(edited, plain(1), strict=True))


@pytest.mark.parametrize(
    "hook",
    [
        Recorder(after=lambda guided: guided[:, :1]),
        Recorder(after=lambda guided: guided.double()),
        Recorder(after=lambda guided: 1 / 0),
        Recorder(before=lambda predictions: "nonsense"),
        Recorder(before=lambda predictions: 1 / 0),
    ],
    ids=["shape", "dtype", "raises-after", "type", "raises-before"],
)
def test_a_faulty_hook_fails_every_sample_once_and_is_not_called_again(hook: Recorder) -> None:
    run = run_of([ACTING, OFF], [hook])
    drive(run, 2)
    assert set(run.failures) == {0, 1}
    for (failure,) in run.failures.values():
        assert (failure.source, failure.version, failure.step) == ("recorder", "1.2", 0)
        assert failure.error
    assert {index for _, index in hook.calls} == {0}
    assert run.hopeless


@pytest.mark.parametrize("where", ["start", "rows", "combine", "shape"])
def test_a_faulty_method_fails_its_own_samples_and_the_others_are_guided(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.METHODS, "faulty", Faulty(where))
    run = run_of([policy("faulty"), ACTING, OFF])
    mixed = drive(run, 3)
    assert set(run.failures) == {0}
    (failure,) = run.failures[0]
    assert (failure.source, failure.version) == ("faulty", "9.1")
    assert failure.step == (None if where == "start" else 0)
    alone = drive(run_of([OFF, ACTING, OFF]), 3)
    assert all(torch.equal(one, two) for one, two in zip(mixed, alone, strict=True))
    assert not run.hopeless


@pytest.mark.parametrize("strict", [True, False])
def test_where_pictures_cannot_be_withheld_a_failure_raises(
    strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.METHODS, "faulty", Faulty("combine"))
    chosen = policy("faulty", on_error="block" if strict else "raise")
    with pytest.raises(SafetyFailure, match=r"faulty 9\.1 failed at step 0: ZeroDivisionError: by design"):
        drive(run_of([chosen], strict=strict), 1)


def test_an_unknown_method_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(GuidanceError, match=r"'sdl'; did you mean 'sld'\?; available: sld"):
        run_of([policy("sdl")])


def test_more_calls_than_the_schedule_has_are_an_error() -> None:
    run = run_of([ACTING])
    drive(run, 1)
    assert run.finished
    with pytest.raises(GuidanceError, match="more often than the 4 times"):
        drive(run, 1, steps=1)


def test_rows_are_counted_per_sample() -> None:
    run = run_of([policy(), OFF])
    with pytest.raises(GuidanceError, match="starts at step"):
        run_of([SafetyPolicy.preset("weak")])
    drive(run, 2)
    assert (run.rows_of(0), run.rows_of(1)) == (3 * STEPS, 2 * STEPS)
    assert run.trace.rows == 5 * STEPS
