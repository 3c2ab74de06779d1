"""SLD's equations 3 to 8 in float64, one sample and one step after the other, and made-up predictions to try them on.

Predictions are multiples of 1/64, so that comparisons with thresholds on or half-way between these come out the same in
float32 and in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sldcore.guidance.base import ActsWithoutRows, GuidanceRun, GuidedSample
from sldcore.policy import GuidanceSpec, Options
from sldcore.types import Guided, Predictions, Row, Schedule

Array = NDArray[np.float64]

MEDIUM = {"scale": 1000.0, "threshold": 0.01, "momentum_scale": 0.3, "momentum_beta": 0.4}
MAX = {"scale": 5000.0, "threshold": 1.0, "momentum_scale": 0.5, "momentum_beta": 0.7}


@dataclass(frozen=True)
class Story:
    """Predictions of a run: ``uncond`` and ``cond`` [T, B, ...], ``concepts`` [T, B, K, ...], and epsilon factors [T]."""

    uncond: Array
    cond: Array
    concepts: Array
    factors: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.cond)

    @property
    def schedule(self) -> Schedule:
        total = self.steps
        levels = tuple(1 - index / total for index in range(total))
        return Schedule(tuple(1000 * level for level in levels), levels, self.factors)

    def of(self, samples: Sequence[int]) -> Story:
        """The same of some samples only."""
        at = list(samples)
        return replace(self, uncond=self.uncond[:, at], cond=self.cond[:, at], concepts=self.concepts[:, at])

    def predictions(self, t: int, rows: Sequence[Row], dtype: torch.dtype = torch.float32) -> Predictions:
        def tensor(values: Any) -> torch.Tensor:
            return torch.tensor(np.asarray(values)).to(dtype)

        chosen = [self.concepts[t, row.sample, row.concept] for row in rows]
        concepts = tensor(chosen) if chosen else tensor(self.cond[t, :0])
        return Predictions(tensor(self.uncond[t]), tensor(self.cond[t]), concepts, tuple(rows))


def drawn(
    seed: int = 0,
    batch: int = 3,
    steps: int = 5,
    concepts: int = 3,
    shape: tuple[int, ...] = (2, 3, 3),
    factors: tuple[float, ...] = (),
) -> Story:
    """Predictions at random, in which no concept is like another."""
    rng = np.random.default_rng(seed)

    def numbers(*sizes: int) -> Array:
        return rng.integers(-64, 65, size=(steps, batch, *sizes, *shape)) / 64

    return Story(numbers(), numbers(), numbers(concepts), factors or (1.0,) * steps)


def sample(
    method: str, options: dict[str, Any], acting: Sequence[float], index: int = 0, **fields: Any
) -> GuidedSample:
    """A sample as a method sees it, with one concept unless ``fields`` say otherwise."""
    spec = GuidanceSpec(method=method, options=Options(options))
    given = {"concepts": (0,), "weights": (1.0,) * len(fields.get("concepts", (0,))), **fields}
    return GuidedSample(index=index, spec=spec, acting=tuple(acting), **given)


def walk(
    run: GuidanceRun, story: Story, dtype: torch.dtype = torch.float32
) -> list[tuple[tuple[Row, ...], Guided | None]]:
    """For each step, the rows that a run asks for and what it makes of them; None where it has nothing to do."""
    steps = list[tuple[tuple[Row, ...], Guided | None]]()
    for t in range(story.steps):
        step = story.schedule.step(t)
        rows = tuple(run.rows(step))
        acts = bool(rows) or (isinstance(run, ActsWithoutRows) and run.acts(step))
        steps.append((rows, run.combine(step, story.predictions(t, rows, dtype)) if acts else None))
    return steps


def safe(steps: Sequence[tuple[tuple[Row, ...], Guided | None]], story: Story) -> Array:
    """The safe conditional predictions of a whole run [T, B, ...]."""
    return np.stack(
        [
            story.cond[t] if guided is None else guided.cond.double().numpy()
            for t, (_, guided) in enumerate(steps)
        ]
    )


def term(e_u: Array, e_p: Array, e_s: Array, scale: float, threshold: float, factor: float) -> Array:
    """mu (e_S - e_u) of one concept, element by element."""
    result = np.zeros_like(e_p)
    for at in np.ndindex(e_p.shape):
        toward = factor * (e_p[at] - e_s[at])
        mu = 0.0 if toward >= threshold else min(abs(toward) * scale, 1.0)
        result[at] = mu * factor * (e_s[at] - e_u[at])
    return result
