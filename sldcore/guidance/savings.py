"""Approximate savings of concept rows: around any method, or of SLD's warm-up. None is on by default.

``concept_every: n`` (:class:`ConceptEvery`). A concept row is evaluated at the first and then at every n-th call for which the
method asks for it without a break. In between, with e_u of the present call and d of the row's last evaluation,

    e_S ~ e_u + d,    d = e_S - e_u

which the method gets as if it were evaluated. The difference is kept in the model's own parametrisation. No bound is known:
it is exact for directions e_S - e_u that do not change from call to call.

``momentum_error: x`` (:func:`shortened`). Before its window opens, SLD evaluates rows only to build momentum:

    gamma = t + s_m nu,  nu' = beta nu + (1 - beta) gamma = rho nu + (1 - beta) t,  rho = beta + (1 - beta) s_m

Terms do not depend on nu, so that nu is linear in them. Let D bound |e_S - e_u| (epsilon-equivalent) during the warm-up. Since
mu <= 1, |t_i| <= a_i D where a_i is the sum of the concepts' weights at call i; 0 where the epsilon factor is. With N calls before
the window, nu_N = (1 - beta) sum_{i < N} rho^(N-1-i) t_i, and leaving the first N - m out changes it by

    |sum over i < N - m|  <=  D (1 - beta) sum_{i < N-m} rho^(N-1-i) a_i  =  r_m B,
    B = D (1 - beta) sum_{i < N} rho^(N-1-i) a_i,   r_m = rho^m (1 - rho^(N-m)) / (1 - rho^N) for equal a_i

where B bounds the whole of nu_N. m is the smallest number with r_m <= x. From then on the error shrinks by rho per call, and the safe
prediction is off by at most a s_m r_m B at the first call of the window. Calls without a row leave nu as it is and do not
count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from sldcore.guidance.base import (
    ActsWithoutRows,
    GuidanceRun,
    GuidedSample,
    LeavesOut,
    OwnText,
    SwapsTexts,
)
from sldcore.guidance.sld import SMALLEST_FACTOR, compiled
from sldcore.policy_parts import Savings
from sldcore.types import Guided, OwnRow, Predictions, Row, Schedule, Step

Start = Callable[[Sequence[GuidedSample]], GuidanceRun]


def start_saving(
    start: Start, samples: Sequence[GuidedSample], schedule: Schedule, savings: Mapping[int, Savings]
) -> GuidanceRun:
    """Begin a run by ``start`` with the savings of each sample, by its index; a sample without has none."""
    cut = [
        shortened([sample], schedule, savings[sample.index].momentum_error)[0]
        if sample.index in savings
        else sample
        for sample in samples
    ]
    every = {index: each.concept_every for index, each in savings.items() if each.concept_every > 1}
    run = start(cut)
    return ConceptEvery(run, every) if every else run


class ConceptEvery:
    """A run whose concept rows are evaluated at every n-th call only; ``every`` has n by sample, 1 for those not in it.

    Keeps the last difference [1, C, H, W] of each row that is in use, at least float32.
    """

    def __init__(self, run: GuidanceRun, every: Mapping[int, int]) -> None:
        self._run = run
        self._every = dict(every)
        self._ages: dict[Row, int] = {}  # calls since the last evaluation
        self._differences: dict[Row, Tensor] = {}
        self._asked: tuple[int, tuple[Row, ...]] | None = None  # the step, and what the method asks for

    def rows(self, step: Step) -> tuple[Row, ...]:
        """Those of the method's rows whose turn it is."""
        return tuple(row for row in self._all_rows(step) if self._ages[row] == 0)

    def acts(self, step: Step) -> bool:
        """True if the method asks for rows, or acts without any."""
        return bool(self._all_rows(step)) or (isinstance(self._run, ActsWithoutRows) and self._run.acts(step))

    def own_texts(self, step: Step) -> Mapping[OwnRow, OwnText]:
        """The method's."""
        return self._run.own_texts(step) if isinstance(self._run, SwapsTexts) else {}

    def left_out(self, step: Step) -> frozenset[int]:
        """The method's."""
        return self._run.left_out(step) if isinstance(self._run, LeavesOut) else frozenset()

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """What the method makes of all its rows, evaluated or not; terms are those of rows that were evaluated."""
        rows = self._all_rows(step)
        places = {row: place for place, row in enumerate(predictions.rows)}
        self._remember(rows, places, predictions)
        if len(places) == len(rows):
            return self._run.combine(step, predictions)
        concepts = torch.cat(
            [
                predictions.concepts[places[row]][None] if row in places else self._estimate(row, predictions)
                for row in rows
            ]
        )
        made = self._run.combine(step, replace(predictions, concepts=concepts, rows=rows))
        evaluated = [made.terms[place][None] for place, row in enumerate(rows) if row in places]
        return replace(made, terms=torch.cat(evaluated) if evaluated else made.terms[:0])

    def _all_rows(self, step: Step) -> tuple[Row, ...]:
        """What the method asks for; asked once at each step, which also makes the rows one call older."""
        if self._asked is None or self._asked[0] != step.index:
            rows = tuple(Row(*row) for row in self._run.rows(step))
            self._ages = {
                row: (self._ages[row] + 1) % self._every.get(row.sample, 1) if row in self._ages else 0
                for row in rows
            }
            self._asked = (step.index, rows)
        return self._asked[1]

    def _remember(self, rows: Sequence[Row], places: Mapping[Row, int], predictions: Predictions) -> None:
        """Keep the differences of rows that were evaluated and will not be at every call; forget rows out of use."""
        kept = {row: self._differences[row] for row in rows if row in self._differences}
        precision = torch.promote_types(predictions.concepts.dtype, torch.float32)
        for row, place in places.items():
            if self._every.get(row.sample, 1) > 1:
                e_u = predictions.uncond[row.sample][None].to(precision)
                kept[row] = predictions.concepts[place][None].to(precision) - e_u
        self._differences = kept

    def _estimate(self, row: Row, predictions: Predictions) -> Tensor:
        """e_u + d as [1, C, H, W], within what the type of the predictions can hold."""
        difference, dtype = self._differences[row], predictions.concepts.dtype
        largest = torch.finfo(dtype).max
        e_s = predictions.uncond[row.sample][None].to(difference.dtype) + difference
        return e_s.clamp(-largest, largest).to(dtype)


def shortened(samples: Sequence[GuidedSample], schedule: Schedule, error: float) -> list[GuidedSample]:
    """SLD's samples with the beginning of their warm-up cut, so that the momentum is off by ``error`` of its bound at most."""
    if error == 0:
        return list(samples)
    return [
        replace(sample, builds_from=max(sample.builds_from, _first_needed(sample, schedule, error)))
        for sample in samples
    ]


def _first_needed(sample: GuidedSample, schedule: Schedule, error: float) -> int:
    """The first call before the window at which rows have to be evaluated."""
    member = compiled(sample, schedule)
    opens = next((index for index, act in enumerate(sample.acting) if act), 0)
    calls = [index for index in range(opens) if member.needed(index)]
    rho = member.momentum_beta + (1 - member.momentum_beta) * member.momentum_scale
    shares = [
        rho ** (len(calls) - 1 - place)
        * sum(concept.weights[index] for concept in member.needed(index))
        * (abs(schedule.epsilon_factors[index]) > SMALLEST_FACTOR)
        for place, index in enumerate(calls)
    ]
    neglected = [0.0, *accumulate(shares)]  # by the number of calls that are left out
    left_out = max(count for count, share in enumerate(neglected) if share <= error * neglected[-1])
    return calls[left_out] if left_out < len(calls) else opens
