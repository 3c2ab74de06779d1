"""Conflict-aware adaptive safety guidance, "CASG", CVPR 2026, arXiv 2602.20880: SLD against one concept of several.

Guidance away from several harms at once can lead to one of them. So each sample is guided away from one concept only,
the one that the prompt's own direction is nearest to. With e_u, e_p, e_k the unconditional, prompt and concept
predictions of one sample, over all its elements:

    g_k = e_k - e_u
    h   = argmax_k <g_k, e_p - e_u> / |g_k|        at every denoiser call, for each sample
    e_p' = SLD's, with e_S = e_h                   see sldcore.guidance.sld; the momentum is the sample's, whatever h is

The choice stays on the device. A concept that predicts what e_u is (|g_k| = 0) is chosen only if all do; of equals the first one
is chosen. A concept's weight and strength scale its SLD term and say nothing of the choice; outside its own window, and at
weight 0, it cannot be chosen.

All K concepts are rows at every call. With ``choose_until: n``, which is not the paper's, the choice of a sample's n-th call
with several candidates stays and further calls evaluate its row alone, or all again where the window of the chosen
concept is shut. This waits for the device once, at the call after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sldcore import __version__
from sldcore.guidance.base import GuidanceRun, GuidedSample
from sldcore.guidance.sld import Member, MemberConcept, SLDRun
from sldcore.types import Row, Schedule, Step


def conflict(e_u: Tensor, e_p: Tensor, e_k: Tensor) -> Tensor:
    """<g_k, e_p - e_u> / |g_k| of rows [R, ...], as [R]; -inf where g_k is 0."""
    toward = e_k - e_u
    product = (toward * (e_p - e_u)).flatten(1).sum(1)
    size = toward.flatten(1).square().sum(1).sqrt()
    return (product / size).masked_fill(size == 0, -torch.inf)


class CASG:
    """The method ``casg``; options of ``sld`` and ``choose_until``."""

    name = "casg"
    version = __version__

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        """Begin a run.

        Raises:
            ValueError: a sample says how guidance acts for another number of steps than the schedule's.
        """
        return CASGRun(samples, schedule)


@dataclass(frozen=True, slots=True)
class _Table:
    """Where the candidates of one step stand: rows in a table [M, K'] of members and their candidates, on the device."""

    members: tuple[int, ...]  # of the run, M
    candidates: tuple[tuple[MemberConcept, ...], ...]  # of each
    width: int  # K', the largest number of candidates
    cells: Tensor  # [R], row by row the number of its cell
    row_members: Tensor  # [R], the line of each row
    row_places: Tensor  # [R], the column of each row


@dataclass(frozen=True, slots=True)
class _Settled:
    """Choices [M] of one step, still on the device, of which some stay: members of the run, and their lines."""

    choices: Tensor
    table: _Table
    lines: tuple[int, ...]


class CASGRun(SLDRun):
    """State of one run: SLD's momentum, and for how many calls each sample's concept is still chosen."""

    def __init__(self, samples: Sequence[GuidedSample], schedule: Schedule) -> None:
        super().__init__(samples, schedule)
        self._left = [int(sample.spec.options["choose_until"]) for sample in samples]
        self._settled: _Settled | None = None
        self._tables: list[_Table | None] = []

    def rows(self, step: Step) -> tuple[Row, ...]:
        """All concepts of the samples that act or build momentum; of those whose choice stays, the chosen one."""
        if self._settled is not None:
            self._settle(self._settled, step.index)
            self._settled = None
        return super().rows(step)

    def _settle(self, settled: _Settled, step: int) -> None:
        """Keep what was chosen: from ``step`` on, other concepts are needed only where the chosen one is not."""
        choices = settled.choices.tolist()  # the one wait for the device
        for line in settled.lines:
            number = settled.table.members[line]
            chosen = settled.table.candidates[line][choices[line]]
            self._members[number] = _only(self._members[number], chosen, step)
        self._needed = self._all_needed(len(self._needed))
        self._plans = []

    def _plan(self, cond: Tensor) -> None:
        super()._plan(cond)
        made: dict[int, _Table | None] = {}
        for step, plan in enumerate(self._plans):
            if id(plan) not in made:
                made[id(plan)] = _table(self._members, step, cond.device)
        self._tables = [made[id(plan)] for plan in self._plans]

    def _kept(self, step: Step, terms: Tensor, e_u: Tensor, e_p: Tensor, e_s: Tensor) -> Tensor:
        """The terms of the chosen concepts; the others are 0."""
        table = self._tables[step.index]
        if table is None:
            return terms
        cells = e_s.new_full((len(table.members) * table.width,), -torch.inf)
        cells = cells.index_copy(0, table.cells, conflict(e_u, e_p, e_s))
        # NaN counts as the largest, so that it shows in the result.
        choices = cells.view(-1, table.width).argmax(1)
        self._count(table, choices)
        chosen = choices.index_select(0, table.row_members) == table.row_places
        return torch.where(chosen.view(-1, *(1,) * (terms.ndim - 1)), terms, 0.0)

    def _count(self, table: _Table, choices: Tensor) -> None:
        """Note which samples' choices stay from now on."""
        lines = []
        for line, (number, candidates) in enumerate(zip(table.members, table.candidates, strict=True)):
            if self._left[number] and len(candidates) > 1:
                self._left[number] -= 1
                lines += [] if self._left[number] else [line]
        if lines:
            self._settled = _Settled(choices, table, tuple(lines))


def _table(members: Sequence[Member], step: int, device: torch.device) -> _Table | None:
    """The candidates of one step; None if there is nothing to choose."""
    found = [(number, needed) for number, member in enumerate(members) if (needed := member.needed(step))]
    width = max((len(needed) for _, needed in found), default=0)
    if width < 2:
        return None
    places = [(line, place) for line, (_, needed) in enumerate(found) for place in range(len(needed))]
    return _Table(
        members=tuple(number for number, _ in found),
        candidates=tuple(needed for _, needed in found),
        width=width,
        cells=torch.tensor([line * width + place for line, place in places], device=device),
        row_members=torch.tensor([line for line, _ in places], device=device),
        row_places=torch.tensor([place for _, place in places], device=device),
    )


def _only(member: Member, chosen: MemberConcept, step: int) -> Member:
    """``member`` with its other concepts at weight 0 where ``chosen`` is needed, from ``step`` on."""

    def weights(concept: MemberConcept) -> tuple[float, ...]:
        if concept.row == chosen.row:
            return concept.weights
        return tuple(
            0.0 if index >= step and chosen.weights[index] else weight
            for index, weight in enumerate(concept.weights)
        )

    return replace(member, concepts=tuple(replace(each, weights=weights(each)) for each in member.concepts))
