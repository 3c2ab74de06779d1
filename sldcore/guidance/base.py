"""The protocol of guidance methods and step hooks.

A method is stateless and knows nothing of pipelines. For one run over a batch it is started once, with all samples
whose policies name it, and gives a run object. At every denoiser call the run object is asked which concept rows it
needs, and then to combine the predictions:

    start(samples, schedule) -> run        state of the run lives in this object
    run.rows(step)           -> rows       pairs (sample, concept), any subset, none if nothing is needed
    run.combine(step, p)     -> Guided     c' = c - gamma for its samples, everything else untouched

Neither may synchronise the device: rows are decided on the host, from the schedule alone.

A run may do more, and says so by having further methods: :class:`SwapsTexts` gives the pipeline's own rows other texts,
:class:`ActsWithoutRows` combines where nothing more was evaluated, :class:`LeavesOut` names own rows that the result does not need, :class:`Observes` asks for rows that it only looks at. A
method that has to read the prompts before the loop is a :class:`ReadsPrompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from sldcore.types import Guided, OwnRow, Predictions, Row, Schedule, Step

if TYPE_CHECKING:
    from torch import Tensor

    from sldcore.families.base import TextSpace
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
    probed: tuple[int, ...] = ()
    """Concepts that a gate looks for, if these are others than those that guide."""
    builds_from: int = 0
    """The first denoiser call at which rows may be evaluated only to build momentum."""

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


OwnText: TypeAlias = "int | Mapping[str, Tensor]"
"""What stands in place of an own row's text: a concept of the run, by its index, or text arguments [1, ...] by their names."""


@runtime_checkable
class SwapsTexts(Protocol):
    """A run that gives the pipeline's own rows other texts; no row is added."""

    def own_texts(self, step: Step) -> Mapping[OwnRow, OwnText]:
        """The texts at ``step``; empty where the pipeline's own are right. Samples in it count as guided at this step."""
        ...


@runtime_checkable
class ActsWithoutRows(Protocol):
    """A run that may change predictions at steps for which it asks for no row."""

    def acts(self, step: Step) -> bool:
        """True if :meth:`GuidanceRun.combine` is to be called at ``step`` even if there are no rows."""
        ...


@runtime_checkable
class LeavesOut(Protocol):
    """A run that knows of samples whose further predictions nobody needs."""

    def left_out(self, step: Step) -> frozenset[int]:
        """Samples whose own rows need not be evaluated at ``step``, since each is made again; once out, always out.

        What is handed on as their predictions then is another sample's.
        """
        ...


@runtime_checkable
class Observes(Protocol):
    """A run that looks at concept rows without guiding by them."""

    def observes(self, step: Step) -> bool:
        """True if :meth:`GuidanceRun.combine` changes nothing at ``step``.

        Its rows are evaluated in a call of their own then, so that the pipeline's predictions stay the same to the bit.
        """
        ...


class PromptTexts(Protocol):
    """The texts of one pipeline call, for methods that rewrite them."""

    def arguments(self, sample: int) -> Mapping[str, Tensor]:
        """The denoiser's text arguments of a sample's conditional row, [1, ...] each."""
        ...

    def prompt(self, sample: int) -> str:
        """The sample's prompt.

        Raises:
            GuidanceError: the call gives embeddings and no prompt.
        """
        ...

    def concept(self, index: int) -> str:
        """The text of one of the run's concepts.

        Raises:
            GuidanceError: the concept is an embedding.
        """
        ...

    def masked(self, sample: int) -> tuple[TextSpace, ...]:
        """What the sample's prompt is without each of its tokens: one vector per token, in each text encoder's space.

        Raises:
            GuidanceError: the call gives embeddings and no prompt, or the family cannot mask tokens.
        """
        ...

    def pooled(self, texts: Sequence[str]) -> tuple[TextSpace, ...]:
        """One vector for each of ``texts``, in the spaces of :meth:`masked`.

        Raises:
            GuidanceError: the family cannot mask tokens.
        """
        ...


@runtime_checkable
class ReadsPrompts(Protocol):
    """A guidance method that has to know the prompts when it starts, in place of :meth:`Guidance.start`."""

    def start_with_prompts(
        self, samples: Sequence[GuidedSample], schedule: Schedule, prompts: PromptTexts
    ) -> GuidanceRun:
        """Begin a run for ``samples``.

        Raises:
            GuidanceError: as :meth:`Guidance.start`, or the texts cannot be rewritten in this family.
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
