"""Runs of guidance methods over named samples, and comparing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sldcore.guidance.base import ActsWithoutRows, GuidanceRun
from sldcore.testing.contracts.base import require
from sldcore.testing.contracts.tensors import Place, require_close, require_equal
from sldcore.testing.samples import predictions
from sldcore.types import Guided, Predictions, Row, Step

Spoil = Callable[[Step, Predictions], Predictions]


@dataclass(frozen=True, slots=True)
class Combined:
    """One call of ``combine``: what it got and what it gave, and the batch it was for."""

    step: Step
    predictions: Predictions
    guided: Guided
    batch: tuple[str, ...]

    def cond(self, name: str) -> Any:
        """The safe conditional prediction of one sample."""
        return self.guided.cond[self.batch.index(name)]

    def terms(self, name: str) -> Any:
        """The terms of one sample's rows, in the order of its concepts."""
        at = self.batch.index(name)
        rows = [(row.concept, i) for i, row in enumerate(self.predictions.rows) if row.sample == at]
        return self.guided.terms[[i for _, i in sorted(rows)]]


def combine(
    run: GuidanceRun,
    step: Step,
    batch: tuple[str, ...],
    place: Place,
    spoil: Spoil | None,
    rows: tuple[Row, ...] | None = None,
) -> Combined | None:
    """Ask ``run`` for its rows of one step, unless ``rows`` are given, and let it combine; None if it does nothing there."""
    rows = tuple(run.rows(step)) if rows is None else rows
    if not rows and not (isinstance(run, ActsWithoutRows) and run.acts(step)):
        return None
    given = predictions(step, rows, batch, place.shape, place.dtype, place.device)
    given = spoil(step, given) if spoil else given
    return Combined(step, given, run.combine(step, given), batch)


def require_same_sample(
    got: Sequence[Combined], expected: Sequence[Combined], name: str, message: str
) -> None:
    """Compare what became of one sample, at the steps at which both runs were asked to combine."""
    there = {each.step.index: each for each in got}
    only_here = [there[index] for index in there.keys() - {each.step.index for each in expected}]
    for each in only_here:
        given = each.predictions.cond[each.batch.index(name)]
        require_close(each.cond(name), given, f"step {each.step.index}: sample '{name}' {message}")
    for each in expected:
        other, at = there.get(each.step.index), f"step {each.step.index}: sample '{name}' {message}"
        if other is None:
            given = each.predictions.cond[each.batch.index(name)]
            require_close(given, each.cond(name), at)
            continue
        require_close(other.cond(name), each.cond(name), at)
        require_close(other.terms(name), each.terms(name), f"{at}: its terms")


def require_same_run(got: Sequence[Combined], expected: Sequence[Combined], message: str) -> None:
    """Fail unless two runs over the same batch are equal bit by bit."""
    steps = [each.step.index for each in got], [each.step.index for each in expected]
    require(steps[0] == steps[1], f"the steps with rows: what is asked for {message}")
    for one, two in zip(got, expected, strict=True):
        require_equal(one.guided.cond, two.guided.cond, f"step {one.step.index}: the result {message}")
        require_equal(one.guided.terms, two.guided.terms, f"step {one.step.index}: a term {message}")
