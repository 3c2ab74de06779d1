"""The protocol of guidance methods and step hooks.

A method is stateless and knows nothing of pipelines. For one run over a batch it is started once, with all samples
whose policies name it, and gives a run object. At every denoiser call the run object is asked which concept rows it
needs, and then to combine the predictions:

    start(samples, schedule) -> run        state of the run lives in this object
    run.rows(step)           -> rows       pairs (sample, concept), any subset, none if nothing is needed
    run.combine(step, p)     -> Guided     c' = c - gamma for its samples, everything else untouched

Neither may synchronise the device: rows are decided on the host, from the schedule alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sldcore.types import Guided, Predictions, Row, Schedule, Step

if TYPE_CHECKING:
    from torch import Tensor

    from sldcore.policy import GuidanceSpec


@dataclass(frozen=True, slots=True)
class GuidedSample:
    """One sample of the batch as a method sees it: its index, its parameters and its concepts.

    ``concepts`` are indices into the run's concepts. For each of them ``weights`` scale its safety term and ``strengths``
    the method's own scale. ``acting`` is how strongly guidance acts at each denoiser call, 0 (not at all) to 1;
    ``concept_acting`` the same for each concept's own window. Empty ``strengths`` and ``concept_acting`` mean 1.
    """

    index: int
    spec: GuidanceSpec
    concepts: tuple[int, ...]
    weights: tuple[float, ...]
    acting: tuple[float, ...]
    strengths: tuple[float, ...] = ()
    concept_acting: tuple[tuple[float, ...], ...] = ()

    def amounts(self, step: int) -> tuple[float, ...]:
        """For each concept, everything that scales its term at denoiser call ``step``: weight, strength and both windows.

        All that a method needs whose term grows with its scale; 0 where the concept need not be evaluated.
        """
        strengths = self.strengths or (1.0,) * len(self.concepts)
        opened = [acting[step] for acting in self.concept_acting] or [1.0] * len(self.concepts)
        return tuple(
            weight * strength * own * self.acting[step]
            for weight, strength, own in zip(self.weights, strengths, opened, strict=True)
        )


class GuidanceRun(Protocol):
    """The state of one method during one run."""

    def rows(self, step: Step) -> tuple[Row, ...]:
        """The concept rows that are needed at ``step``; empty where nothing has to be evaluated."""
        ...

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """Make the safe conditional prediction. Called only at steps for which ``rows`` was not empty.

        ``predictions.rows`` are this run's own; ``uncond`` and ``cond`` hold the whole batch [B, C, H, W].
        """
        ...


@runtime_checkable
class Guidance(Protocol):
    """A guidance method. Stateless: one object serves any number of runs at once."""

    name: str
    version: str

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        """Begin a run for ``samples``.

        Raises:
            GuidanceError: the parameters make no sense for this schedule.
        """
        ...


@runtime_checkable
class StepHook(Protocol):
    """Code that the denoising loop calls at every denoiser call, before and after the guidance is combined.

    Both methods may return None to observe only, or a replacement of the same shape. An exception or a wrong
    shape withholds every picture of the run.
    """

    name: str
    version: str

    def before_guidance(self, step: Step, predictions: Predictions) -> Predictions | None:
        """See or replace the predictions; ``predictions.concepts`` has zero rows where none were needed."""
        ...

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor | None:
        """See or replace the safe conditional prediction ``guided`` [B, C, H, W]."""
        ...
