"""The trace against direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sldcore.tracing import Tracer
from sldcore.types import Guided, Predictions, Row, Schedule

SCHEDULE = Schedule((900.0, 500.0, 100.0), (0.9, 0.5, 0.1), (1.0, 1.0, 1.0))
SHAPE = (4, 3, 2)


def fields(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def recorded(
    rows: tuple[Row, ...], applied: tuple[int, ...], step: int = 1
) -> tuple[Tracer, Predictions, Guided]:
    tracer = Tracer(["a", "b"], 3, SCHEDULE)
    predictions = Predictions(fields(3, 1), fields(3, 2), fields(len(rows), 3), rows)
    terms = fields(len(rows), 4)
    terms[terms < 0] = 0
    guided = Guided(predictions.cond, terms, applied)
    tracer.record(SCHEDULE.step(step), predictions, guided)
    return tracer, predictions, guided


MIXED = (Row(0, 1), Row(2, 0), Row(2, 1))


@pytest.mark.parametrize("rows", [MIXED, (Row(0, 0), Row(1, 0), Row(2, 0))])
def test_norm_share_and_relevance_are_those_of_the_tensors(rows: tuple[Row, ...]) -> None:
    tracer, predictions, guided = recorded(rows, (0, 2))
    trace = tracer.trace
    for number, row in enumerate(rows):
        term = guided.terms[number].double()
        concept = (predictions.concepts[number] - predictions.uncond[row.sample]).double().flatten()
        prompt = (predictions.cond - predictions.uncond)[row.sample].double().flatten()
        at = (row.sample, row.concept, 1)
        assert trace.norm[at] == pytest.approx(float(term.norm()), rel=1e-5)
        assert trace.active[at] == pytest.approx(float((term != 0).double().mean()))
        cosine = float(concept @ prompt / (concept.norm() * prompt.norm()))
        assert trace.relevance[at] == pytest.approx(cosine, abs=1e-5)


def test_what_was_not_evaluated_is_nan_and_not_zero() -> None:
    trace = recorded(MIXED, (0, 2))[0].trace
    evaluated = np.zeros((3, 2, 3), dtype=bool)
    for row in MIXED:
        evaluated[row.sample, row.concept, 1] = True
    assert np.array_equal(trace.evaluated, evaluated)
    for values in (trace.norm, trace.active, trace.relevance):
        assert np.array_equal(np.isfinite(values), evaluated)


def test_applied_marks_only_the_samples_whose_prediction_changed() -> None:
    trace = recorded(MIXED, (2,))[0].trace
    assert np.argwhere(trace.applied).tolist() == [[2, 0, 1], [2, 1, 1]]


def test_heat_adds_up_the_applied_terms_of_all_concepts() -> None:
    tracer, _, guided = recorded(MIXED, (2,))
    heat = tracer.trace.heat
    expected = guided.terms[1:].abs().mean(1).sum(0).numpy()
    assert heat.shape == (3, 3, 2)
    assert heat[2] == pytest.approx(expected, rel=1e-6)
    assert not heat[:2].any()


def test_rows_count_the_plain_ones_and_the_concepts() -> None:
    trace = recorded(MIXED, ())[0].trace
    assert trace.plain_rows == 2 * 3 * 3
    assert trace.rows == 2 * 3 * 3 + 3


def test_a_trace_may_be_read_while_the_run_goes_on() -> None:
    tracer, predictions, guided = recorded(MIXED, (2,), step=0)
    assert tracer.trace.evaluated.sum() == 3
    tracer.record(SCHEDULE.step(1), predictions, guided)
    assert tracer.trace.evaluated.sum() == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["uncond", "cond", "concepts"])
def test_what_is_not_finite_in_any_prediction_is_found_with_its_step(value: float, part: str) -> None:
    tracer = Tracer(["a"], 2, SCHEDULE)
    predictions = Predictions(fields(2, 1), fields(2, 2), fields(2, 3), (Row(0, 0), Row(1, 0)))
    getattr(predictions, part)[1, 0, 0, 0] = value
    tracer.record(SCHEDULE.step(2), predictions, Guided(predictions.cond, fields(2, 4), (0, 1)))
    assert tracer.broken == [(Row(1, 0), 2)]


def test_a_run_without_rows_has_an_empty_trace() -> None:
    trace = Tracer([], 2, SCHEDULE).trace
    assert trace.evaluated.shape == (2, 0, 3)
    assert trace.rows == 12
    assert not trace.heat.any()
