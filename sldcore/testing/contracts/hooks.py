"""The contract of step hooks."""

# ruff: noqa: D102  (the name of a test is its documentation)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from torch import Tensor

from sldcore.contributions import StepHookKind
from sldcore.guidance.base import StepHook
from sldcore.testing.contracts.base import NamedContract, does_not_apply, require
from sldcore.testing.contracts.tensors import (
    DTYPES,
    PARTS,
    Place,
    cuda,
    require_close,
    require_equal,
    require_like,
    unchanged,
    with_nan,
)
from sldcore.testing.samples import predictions, schedule
from sldcore.types import Predictions, Row, Step

BATCH: Final = ("knight", "cat", "crowd")
NONE_BEFORE: Final = 2
"""The step from which on there are concept rows: before it, hooks see predictions with zero rows."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One step: what the hook was given, and what went on from it (its edit, or what it was given)."""

    step: Step
    given: Predictions
    edited: Predictions
    guided: Tensor
    after: Tensor
    batch: tuple[str, ...]

    def of(self, name: str) -> dict[str, Tensor]:
        """What went on for one sample."""
        at = self.batch.index(name)
        rows = [number for number, row in enumerate(self.given.rows) if row.sample == at]
        return {
            "uncond": self.edited.uncond[at],
            "cond": self.edited.cond[at],
            "concepts": self.edited.concepts[rows],
            "the guided prediction": self.after[at],
        }


class StepHookContract(NamedContract):
    """For :class:`sldcore.contributions.StepHookKind`; ``steps`` is the length of the runs that are tested."""

    kind = StepHookKind
    protocol = StepHook
    steps: ClassVar[int] = 12

    def make(self) -> StepHook:
        """A new hook."""
        made: StepHook = self.subject.create(self.checked_options)
        return made

    def use(self, made: StepHook) -> int:
        """One run."""
        return 2 * len(self.walk(made))

    def walk(
        self,
        hook: StepHook,
        batch: Sequence[str] = BATCH,
        *,
        place: Place = Place(),  # noqa: B008  (frozen)
        nan: tuple[str, str] | None = None,
    ) -> list[Seen]:
        """One run over ``batch``; with ``nan``, a part of the predictions and a sample, NaN there at every step."""
        plan = schedule(self.steps)
        return [_seen(hook, plan.step(index), tuple(batch), place, nan) for index in range(self.steps)]

    def test_each_run_has_a_hook_of_its_own(self) -> None:
        require(
            self.make() is not self.make(),
            "the factory gives the same object twice, so that runs share its state",
        )

    def test_edits_have_the_form_of_what_they_replace(self) -> None:
        for place in [Place(dtype, shape=shape) for dtype in DTYPES for shape in ((4, 4, 4), (3, 2, 6))]:
            self._require_forms(place)

    def test_edits_on_cuda_stay_there(self) -> None:
        device = cuda()
        if device is None:
            raise does_not_apply("there is no CUDA device")
        for dtype in DTYPES:
            self._require_forms(Place(dtype, device))

    def _require_forms(self, place: Place) -> None:
        for seen in self.walk(self.make(), place=place):
            edited = seen.edited
            require(
                isinstance(edited, Predictions),
                f"before_guidance() gave {type(edited).__name__}, not Predictions",
            )
            for part in PARTS:
                require_like(getattr(edited, part), getattr(seen.given, part), f"before_guidance(): {part}")
            require(edited.rows == seen.given.rows, "before_guidance() changes which rows were evaluated")
            require_like(seen.after, seen.guided, "after_guidance()")

    def test_edits_of_finite_predictions_are_finite(self) -> None:
        for dtype in DTYPES:
            for seen in self.walk(self.make(), place=Place(dtype)):
                for name in BATCH:
                    for part, value in seen.of(name).items():
                        finite = bool(value.isfinite().all())
                        require(finite, f"step {seen.step.index}, {dtype}: NaN or Inf in {part}")

    def test_the_input_is_not_changed(self) -> None:
        plan, hook = schedule(self.steps), self.make()
        for step in map(plan.step, range(self.steps)):
            given = _given(step, BATCH, Place())
            with unchanged(given, "before_guidance()"):
                hook.before_guidance(step, given)
            guided = _guided(given)
            before = guided.clone()
            with unchanged(given, "after_guidance()"):
                hook.after_guidance(step, given, guided)
            require_equal(guided, before, "after_guidance() changed its input; return a new tensor instead")

    def test_a_sample_alone_is_as_in_a_batch(self) -> None:
        together = self.walk(self.make())
        for name in BATCH:
            alone = self.walk(self.make(), (name,))
            _require_same(alone, together, [name], "is not the same alone as in a batch")

    def test_the_order_of_a_batch_does_not_matter(self) -> None:
        one, two = self.walk(self.make()), self.walk(self.make(), BATCH[::-1])
        _require_same(two, one, BATCH, "is not the same at another place of the batch")

    def test_nan_in_one_sample_does_not_reach_the_others(self) -> None:
        clean = self.walk(self.make())
        for part in PARTS:
            spoilt = self.walk(self.make(), nan=(part, BATCH[0]))
            _require_same(spoilt, clean, BATCH[1:], f"changes with NaN in {part} of another sample")

    def test_nan_is_not_hidden(self) -> None:
        for part in PARTS:
            for seen in self.walk(self.make(), nan=(part, BATCH[0])):
                if part != "concepts" or seen.given.rows:
                    hidden = bool(seen.of(BATCH[0])[part].isfinite().all())
                    require(
                        not hidden, f"step {seen.step.index}: NaN in {part} is gone, and nobody learns of it"
                    )

    def test_the_same_input_gives_the_same_result(self) -> None:
        _require_same(
            self.walk(self.make()), self.walk(self.make()), BATCH, "differs between two runs", exact=True
        )

    def test_two_runs_at_once_do_not_disturb_each_other(self) -> None:
        plan, batches = schedule(self.steps), (BATCH, BATCH[:2])
        expected = [self.walk(self.make(), batch) for batch in batches]
        hooks = [self.make() for _ in batches]
        found: list[list[Seen]] = [[] for _ in batches]
        for step in map(plan.step, range(self.steps)):
            for hook, batch, seen in zip(hooks, batches, found, strict=True):
                seen.append(_seen(hook, step, batch, Place(), None))
        for batch, one, two in zip(batches, found, expected, strict=True):
            _require_same(one, two, batch, "is another while a second run is under way", exact=True)


def _given(step: Step, batch: tuple[str, ...], place: Place) -> Predictions:
    """Two concept rows for each sample, none in the first steps."""
    rows = [Row(sample, concept) for sample in range(len(batch)) for concept in range(2)]
    rows = rows if step.index >= NONE_BEFORE else []
    return predictions(step, rows, batch, place.shape, place.dtype, place.device)


def _guided(given: Predictions) -> Tensor:
    return given.cond - (given.uncond * 0.25).to(given.cond.dtype)


def _seen(
    hook: StepHook, step: Step, batch: tuple[str, ...], place: Place, nan: tuple[str, str] | None
) -> Seen:
    given = _given(step, batch, place)
    if nan is not None and (nan[0] != "concepts" or given.rows):
        at = batch.index(nan[1])
        row = next(i for i, row in enumerate(given.rows) if row.sample == at) if nan[0] == "concepts" else at
        given = with_nan(given, nan[0], row)
    edited: Any = hook.before_guidance(step, given)
    edited = given if edited is None else edited
    guided = _guided(given)
    after = hook.after_guidance(step, edited, guided)
    return Seen(step, given, edited, guided, guided if after is None else after, batch)


def _require_same(
    got: Sequence[Seen], expected: Sequence[Seen], names: Sequence[str], message: str, exact: bool = False
) -> None:
    compare = require_equal if exact else require_close
    for one, two in zip(got, expected, strict=True):
        for name in names:
            there, here = one.of(name), two.of(name)
            for part, value in here.items():
                compare(there[part], value, f"step {two.step.index}: {part} of sample '{name}' {message}")
