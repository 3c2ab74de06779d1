"""The trace against direct computation of what it claims: fractions, norms, cosines, heat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from sldcore.tracing import Tracer
from sldcore.types import Guided, Predictions, Row, Schedule

SHAPE = (4, 3, 5)
SCHEDULE = Schedule((900.0, 600.0, 300.0, 0.0), (0.9, 0.6, 0.3, 0.1), (1.0,) * 4)
# step -> rows of one method at that step, and the samples it was applied to: B = 3, K = 2, with gaps
RECORDED: tuple[tuple[int, tuple[Row, ...], tuple[int, ...]], ...] = (
    (0, (Row(0, 0), Row(1, 0), Row(2, 0)), ()),
    (1, (Row(0, 0), Row(0, 1), Row(2, 1)), (2,)),
    (1, (Row(1, 1),), (1,)),  # a second method in the same step
    (3, (Row(2, 1), Row(0, 1)), (0, 2)),
)


@dataclass(frozen=True)
class Recorded:
    """One call of ``record``."""

    step: int
    predictions: Predictions
    guided: Guided


def recorded(
    step: int, rows: Sequence[Row], applied: Sequence[int], dtype: torch.dtype = torch.float32, batch: int = 3
) -> Recorded:
    """Random predictions, and terms of which about a third are zero."""
    draw = torch.Generator().manual_seed(100 * step + len(rows))
    uncond, cond = torch.randn(2, batch, *SHAPE, generator=draw).to(dtype)
    concepts, terms = torch.randn(2, len(rows), *SHAPE, generator=draw)
    terms = terms * (torch.rand(terms.shape, generator=draw) > 0.3)
    return Recorded(
        step,
        Predictions(uncond, cond, concepts.to(dtype), tuple(rows)),
        Guided(cond, terms, tuple(applied)),
    )


def traced(parts: Sequence[Recorded], batch: int = 3) -> Tracer:
    tracer = Tracer(["violence", "blood"], batch, SCHEDULE)
    for part in parts:
        tracer.record(SCHEDULE.step(part.step), part.predictions, part.guided)
    return tracer


def cosine(one: Tensor, other: Tensor) -> float:
    a, b = one.double().numpy().ravel(), other.double().numpy().ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.fixture(scope="module")
def parts() -> list[Recorded]:
    return [recorded(*entry) for entry in RECORDED]


def cells(parts: Sequence[Recorded]) -> dict[tuple[int, int, int], tuple[Recorded, int]]:
    """(sample, concept, step) to the call and the number of the row in it."""
    return {
        (row.sample, row.concept, part.step): (part, number)
        for part in parts
        for number, row in enumerate(part.predictions.rows)
    }


def test_evaluated_and_applied_cells_are_those_of_the_recorded_rows(parts: list[Recorded]) -> None:
    trace = traced(parts).trace
    expected = cells(parts)
    assert set(zip(*np.nonzero(trace.evaluated), strict=True)) == set(expected)
    assert set(zip(*np.nonzero(trace.applied), strict=True)) == {
        cell for cell, (part, _) in expected.items() if cell[0] in part.guided.applied
    }


def test_active_is_the_fraction_of_elements_with_a_term(parts: list[Recorded]) -> None:
    trace = traced(parts).trace
    for cell, (part, number) in cells(parts).items():
        term = part.guided.terms[number].numpy()
        assert trace.active[cell] == pytest.approx(np.count_nonzero(term) / term.size, abs=1e-6)


def test_norm_is_the_euclidean_norm_of_the_term(parts: list[Recorded]) -> None:
    trace = traced(parts).trace
    for cell, (part, number) in cells(parts).items():
        expected = np.sqrt((part.guided.terms[number].double().numpy() ** 2).sum())
        assert trace.norm[cell] == pytest.approx(expected, rel=1e-5)


def test_relevance_is_the_cosine_of_the_concepts_and_the_prompts_direction(parts: list[Recorded]) -> None:
    trace = traced(parts).trace
    for cell, (part, number) in cells(parts).items():
        uncond, cond = (each[cell[0]] for each in (part.predictions.uncond, part.predictions.cond))
        expected = cosine(part.predictions.concepts[number] - uncond, cond - uncond)
        assert trace.relevance[cell] == pytest.approx(expected, abs=1e-5)


def test_nothing_but_nan_stands_where_nothing_was_evaluated(parts: list[Recorded]) -> None:
    trace = traced(parts).trace
    assert trace.evaluated.shape == (3, 2, 4)
    for values in (trace.active, trace.norm, trace.relevance):
        np.testing.assert_array_equal(np.isnan(values), ~trace.evaluated)


def test_heat_adds_up_the_mean_absolute_terms_of_applied_samples_only(parts: list[Recorded]) -> None:
    expected = np.zeros((3, *SHAPE[1:]))
    for part in parts:
        for number, row in enumerate(part.predictions.rows):
            if row.sample in part.guided.applied:
                expected[row.sample] += np.abs(part.guided.terms[number].double().numpy()).mean(axis=0)
    heat = traced(parts).trace.heat
    np.testing.assert_allclose(heat, expected, rtol=1e-5)
    assert expected.any(axis=(1, 2)).all()


def test_heat_of_a_whole_batch_in_order_adds_up_over_steps() -> None:
    everyone = (Row(0, 0), Row(1, 0), Row(2, 0))
    parts = [recorded(step, everyone, (0, 1, 2)) for step in range(4)]
    expected = sum(part.guided.terms.abs().double().numpy().mean(axis=1) for part in parts)
    np.testing.assert_allclose(traced(parts).trace.heat, expected, rtol=1e-5)


def test_rows_are_two_per_sample_and_call_and_one_per_evaluated_concept(parts: list[Recorded]) -> None:
    trace = traced(parts).trace
    assert trace.plain_rows == 2 * 3 * 4
    assert trace.rows == 2 * 3 * 4 + (3 + 3 + 1 + 2)


def test_a_trace_names_its_concepts_and_timesteps(parts: list[Recorded]) -> None:
    trace = traced(parts).trace
    assert (trace.concepts, trace.timesteps) == (("violence", "blood"), SCHEDULE.timesteps)


def test_the_trace_of_a_run_without_concepts_is_empty_but_has_its_shape() -> None:
    trace = Tracer([], 2, SCHEDULE).trace
    assert trace.evaluated.shape == (2, 0, 4)
    assert trace.heat.shape == (2, 1, 1) and not trace.heat.any()
    assert trace.rows == 2 * 2 * 4


def test_a_trace_may_be_read_while_the_run_goes_on(parts: list[Recorded]) -> None:
    tracer = traced(parts[:1])
    before = tracer.trace.evaluated.sum()
    tracer.record(SCHEDULE.step(1), parts[1].predictions, parts[1].guided)
    assert (before, tracer.trace.evaluated.sum()) == (3, 6)


def test_relevance_of_a_concept_without_direction_is_nan_and_no_failure() -> None:
    part = recorded(0, (Row(0, 0), Row(1, 0)), (0, 1))
    part.predictions.concepts[0] = part.predictions.uncond[0]
    tracer = traced([part])
    relevance = tracer.trace.relevance[:, 0, 0]
    assert np.isnan(relevance).tolist() == [True, False, True]
    assert tracer.broken == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_traced_in_float32(dtype: torch.dtype) -> None:
    """Norms whose squares float16 cannot hold."""
    part = recorded(0, (Row(0, 0), Row(1, 0), Row(2, 0)), (0, 1, 2), dtype)
    terms = part.guided.terms * 1000
    trace = traced([Recorded(0, part.predictions, Guided(part.predictions.cond, terms, (0, 1, 2)))]).trace
    np.testing.assert_allclose(trace.norm[:, 0, 0], terms.flatten(1).norm(dim=1).numpy(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_around_the_pipeline_does_not_coarsen_or_overflow_the_trace(dtype: torch.dtype) -> None:
    part = recorded(0, (Row(0, 0), Row(1, 0), Row(2, 0)), (0, 1, 2))
    part = Recorded(0, part.predictions, Guided(part.guided.cond, part.guided.terms * 100, (0, 1, 2)))
    with torch.autocast("cpu", dtype):
        tracer = traced([part])
    assert tracer.broken == []
    for name in ("norm", "relevance", "active"):
        np.testing.assert_allclose(
            getattr(tracer.trace, name), getattr(traced([part]).trace, name), rtol=1e-6
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["uncond", "cond", "concepts", "terms"])
def test_a_number_that_is_none_is_found_with_its_row_and_first_step(where: str, value: float) -> None:
    rows = (Row(2, 1), Row(0, 1))
    good, bad = recorded(0, rows, (0, 2)), recorded(3, rows, (0, 2))
    target = bad.guided.terms if where == "terms" else getattr(bad.predictions, where)
    index = 2 if where in ("uncond", "cond") else 0
    target[index, 1, 2, 3] = value
    assert traced([good, bad]).broken == [(Row(2, 1), 3)]
