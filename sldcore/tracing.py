"""Recording where and when guidance acted, without synchronising the device.

Statistics of each step stay on the device as one small tensor; they are moved to the host together when the trace
is asked for, after the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sldcore.types import Guided, Predictions, Row, Schedule, Step, Trace


def mean_over_channels(strength: Tensor) -> Tensor:
    """Strengths [R, C, H, W] as maps [R, H, W]."""
    return strength.mean(1)


class Tracer:
    """Collects one run's trace of B samples and K concepts.

    ``spatial`` makes maps [R, H, W] of strengths in the latents' layout; ``parts`` are the rows that a sample has at each step
    without guidance.
    """

    def __init__(
        self,
        concepts: Sequence[str],
        batch: int,
        schedule: Schedule,
        spatial: Callable[[Tensor], Tensor] = mean_over_channels,
        parts: int = 2,
    ) -> None:
        self._spatial = spatial
        self._parts = parts
        self._concepts = tuple(concepts)
        self._batch = batch
        self._schedule = schedule
        self._steps: list[tuple[int, tuple[Row, ...], frozenset[int]]] = []
        self._grams: list[Tensor] = []  # [R, 3, 3] each
        self._active: list[Tensor] = []  # [R] each
        self._heat: Tensor | None = None  # [B, H, W]
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._noted: list[tuple[Row, int]] = []
        self._collected: tuple[int, Trace, list[tuple[Row, int]]] | None = None

    def record(self, step: Step, predictions: Predictions, guided: Guided) -> None:
        """Note what one method did at one step.

        The Gram matrix of (term, e_k - e_u, e_p - e_u) holds the term's norm and both factors of the relevance.
        """
        rows, terms = predictions.rows, guided.terms.float()
        if not rows:
            return
        samples = [row.sample for row in rows]
        uncond = self._gather(predictions.uncond, samples).float()
        cond = self._gather(predictions.cond, samples).float()
        vectors = torch.stack([terms, predictions.concepts.float() - uncond, cond - uncond], dim=1).flatten(2)
        with _without_autocast(vectors.device):
            self._grams.append(vectors @ vectors.transpose(1, 2))
        self._active.append((vectors[:, 0] != 0).float().mean(1))
        self._steps.append((step.index, rows, frozenset(guided.applied)))
        if guided.applied:
            self._add_heat(terms, samples, guided.applied)

    def note(self, step: Step, rows: Sequence[Row]) -> None:
        """Note concepts that acted at a step without rows of their own."""
        self._noted += [(row, step.index) for row in rows]

    @property
    def trace(self) -> Trace:
        """What was recorded so far, on the host."""
        return self._so_far()[0]

    @property
    def broken(self) -> list[tuple[Row, int]]:
        """Rows and steps with NaN or Inf in a prediction or a safety term, in the order of the steps."""
        return self._so_far()[1]

    def _so_far(self) -> tuple[Trace, list[tuple[Row, int]]]:
        """Move everything to the host, once for as long as nothing is added."""
        gathered = len(self._steps) + len(self._noted)
        if self._collected is None or self._collected[0] != gathered:
            self._collected = (gathered, *self._collect())
        return self._collected[1:]

    def _gather(self, tensor: Tensor, samples: list[int]) -> Tensor:
        if samples == list(range(self._batch)):
            return tensor
        return tensor.index_select(0, self._index(samples, tensor.device))

    def _index(self, samples: list[int], device: torch.device) -> Tensor:
        key = tuple(samples)
        if key not in self._indices:
            self._indices[key] = torch.tensor(samples, dtype=torch.long, device=device)
        return self._indices[key]

    def _add_heat(self, terms: Tensor, samples: list[int], applied: tuple[int, ...]) -> None:
        kept = [position for position, sample in enumerate(samples) if sample in applied]
        if len(kept) < len(samples):
            terms = terms.index_select(0, self._index(kept, terms.device))
        strength = self._spatial(terms.abs())  # [R, H, W]
        if self._heat is None:
            self._heat = strength.new_zeros((self._batch, *strength.shape[1:]))
        acting = [samples[position] for position in kept]
        if acting == list(range(self._batch)):
            self._heat += strength
        else:
            self._heat.index_add_(0, self._index(acting, strength.device), strength)

    def _collect(self) -> tuple[Trace, list[tuple[Row, int]]]:
        shape = (self._batch, len(self._concepts), len(self._schedule))
        evaluated, applied = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        active, norm, relevance = (np.full(shape, np.nan, dtype=np.float32) for _ in range(3))
        entries = [(row, step, row.sample in acting) for step, rows, acting in self._steps for row in rows]
        grams, shares = self._on_host()
        with np.errstate(invalid="ignore", divide="ignore"):
            norms = np.sqrt(grams[:, 0, 0])
            cosines = grams[:, 1, 2] / np.sqrt(grams[:, 1, 1] * grams[:, 2, 2])
        for number, (row, step, acts) in enumerate(entries):
            at = (row.sample, row.concept, step)
            evaluated[at], applied[at] = True, acts
            active[at], norm[at], relevance[at] = shares[number], norms[number], cosines[number]
        for row, step in self._noted:
            applied[row.sample, row.concept, step] = True
        judged = zip(entries, grams, strict=True)
        broken = [(row, step) for (row, step, _), gram in judged if not np.isfinite(gram).all()]
        nowhere = np.zeros((self._batch, 1, 1), dtype=np.float32)
        trace = Trace(
            concepts=self._concepts,
            timesteps=self._schedule.timesteps,
            evaluated=evaluated,
            applied=applied,
            active=active,
            norm=norm,
            relevance=relevance,
            heat=nowhere if self._heat is None else self._heat.cpu().numpy(),
            plain_rows=self._parts * self._batch * len(self._schedule),
        )
        return trace, broken

    def _on_host(self) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """All Gram matrices [N, 3, 3] and active fractions [N], in the order in which rows were recorded."""
        if not self._grams:
            return np.zeros((0, 3, 3)), np.zeros(0, dtype=np.float32)
        return torch.cat(self._grams).double().cpu().numpy(), torch.cat(self._active).cpu().numpy()


def empty_trace(batch: int) -> Trace:
    """The trace of a run in which guidance did nothing."""
    return Tracer((), batch, Schedule((), (), ())).trace


def replaced_samples(trace: Trace, chosen: Sequence[int], later: Trace) -> Trace:
    """``trace`` with some samples taken from the trace of a later call, which may have other concepts and steps."""
    concepts = (*trace.concepts, *(name for name in later.concepts if name not in trace.concepts))
    timesteps = max(trace.timesteps, later.timesteps, key=len)
    shape = (len(trace.heat), len(concepts), len(timesteps))
    arrays: dict[str, NDArray[Any]] = {}
    for name in ("evaluated", "applied", "active", "norm", "relevance"):
        before, after = getattr(trace, name), getattr(later, name)
        whole = np.full(shape, False if before.dtype == bool else np.nan, dtype=before.dtype)
        whole[:, : before.shape[1], : before.shape[2]] = before
        whole[list(chosen)] = False if before.dtype == bool else np.nan
        for position, sample in enumerate(chosen):
            for number, concept in enumerate(later.concepts):
                whole[sample, concepts.index(concept), : after.shape[2]] = after[position, number]
        arrays[name] = whole
    size = max(trace.heat.shape[1:], later.heat.shape[1:])
    heat = (
        np.broadcast_to(trace.heat, (len(trace.heat), *size)).copy()
        if trace.heat.shape[1:] != size
        else trace.heat.copy()
    )
    heat[list(chosen)] = later.heat
    return Trace(concepts, timesteps, heat=heat, plain_rows=trace.plain_rows + later.plain_rows, **arrays)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep products in float32: in float16 they overflow, and would pass for a failure of the prediction."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
