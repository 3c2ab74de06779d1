"""The samples of a run that share a guidance method: how they are started, and what a method may hand back for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sldcore.catalogue import using
from sldcore.encoding import RunConcepts, UsedRow
from sldcore.errors import GuidanceError
from sldcore.families.base import COND, UNCOND
from sldcore.guidance.base import (
    Guidance,
    GuidanceRun,
    GuidedSample,
    OwnText,
    PromptTexts,
    ReadsPrompts,
)
from sldcore.guidance.gate import GateRun
from sldcore.guidance.savings import start_saving
from sldcore.guidance.windows import acting_steps
from sldcore.hook_lanes import check_like
from sldcore.policy import GuidanceSpec, SafetyPolicy
from sldcore.resolution import Resolved, catalogue_for
from sldcore.types import Guided, OwnRow, Predictions, Row, Schedule


@dataclass(slots=True)
class Lane:
    """The samples of a run that share a guidance method, and the method's state."""

    method: Guidance
    run: GuidanceRun
    members: tuple[GuidedSample, ...]
    index: Tensor | None  # rows of the batch that are its samples'; None if all of them are
    failed: bool = False

    @property
    def samples(self) -> tuple[int, ...]:
        """Its samples."""
        return tuple(member.index for member in self.members)


@dataclass(frozen=True, slots=True)
class Starting:
    """What methods are started with: a run's schedule, and the policies of its samples."""

    schedule: Schedule
    policies: Sequence[SafetyPolicy]
    resolved: Mapping[SafetyPolicy, Resolved]
    concepts: RunConcepts
    prompts: PromptTexts | None = None

    def groups(self) -> list[tuple[Guidance, tuple[GuidedSample, ...]]]:
        """The methods of the run, each with the samples whose policies name it; those behind gates by themselves.

        By contribution, not by name: plugin files of two policies may have methods of one name.
        """
        samples: dict[Any, list[GuidedSample]] = defaultdict(list)
        methods: dict[Any, Guidance] = {}
        seen: dict[SafetyPolicy, GuidedSample] = {}
        for index, policy in enumerate(self.policies):
            resolved = self.resolved[policy]
            if resolved.method is not None and resolved.spec is not None:
                if policy not in seen:  # windows are evaluated once for all samples of a policy
                    seen[policy] = self._sample(index, policy, resolved.spec)
                group = (resolved.kind, resolved.spec.gate is not None)
                samples[group].append(replace(seen[policy], index=index))
                methods.setdefault(group, resolved.method)
        return [(methods[group], tuple(members)) for group, members in samples.items()]

    def run(self, method: Guidance, members: Sequence[GuidedSample]) -> GuidanceRun:
        """Begin a run of ``method``, behind the gate that its samples' policies ask for."""

        def plain(samples: Sequence[GuidedSample]) -> GuidanceRun:
            if not isinstance(method, ReadsPrompts):
                return method.start(samples, self.schedule)
            if self.prompts is None:
                raise GuidanceError(
                    f"method '{method.name}' rewrites prompts, which a pipeline with a guider does not show; use it with the "
                    f"model's classic pipeline"
                )
            return method.start_with_prompts(samples, self.schedule, self.prompts)

        def start(samples: Sequence[GuidedSample]) -> GuidanceRun:
            savings = {each.index: each.spec.savings for each in samples if each.spec.savings is not None}
            return start_saving(plain, samples, self.schedule, savings) if savings else plain(samples)

        if members[0].spec.gate is None:
            return start(members)
        return GateRun(members, start, self.schedule, self._scales(members))

    def _scales(self, members: Sequence[GuidedSample]) -> dict[Row, tuple[float, float]]:
        """Weight and strength of the concepts that gates look for, by sample and concept."""
        policies = {member.index: self.policies[member.index] for member in members}
        return {
            Row(sample, used.row): (used.weight, used.strength)
            for sample, policy in policies.items()
            for used in self.concepts.probed.get(policy, ())
        }

    def _sample(self, index: int, policy: SafetyPolicy, spec: GuidanceSpec) -> GuidedSample:
        """One sample as its method sees it."""
        used, probed = self.concepts.used[policy], self.concepts.probed.get(policy, ())
        with using(catalogue_for([policy])):
            acting = acting_steps(spec.window, self.schedule)
            concept_acting = tuple(self._acting_within(acting, each) for each in used)
        return GuidedSample(
            index=index,
            spec=spec,
            concepts=tuple(each.row for each in used),
            weights=tuple(each.weight for each in used),
            acting=acting,
            strengths=tuple(each.strength for each in used),
            concept_acting=concept_acting,
            probed=tuple(each.row for each in probed),
        )

    def _acting_within(self, acting: tuple[float, ...], used: UsedRow) -> tuple[float, ...]:
        """How strongly one concept acts at each step by its own window.

        Raises:
            GuidanceError: never while the guidance does.
        """
        if used.window is None:
            return (1.0,) * len(acting)
        own = acting_steps(used.window, self.schedule)
        if not any(one and other for one, other in zip(acting, own, strict=True)):
            concept = self.concepts.rows[used.row].concept
            raise GuidanceError(
                f"the window of concept '{concept}' and that of the guidance are never open together, so the concept would "
                f"never act; widen one of them"
            )
        return own


def index_of(samples: Sequence[int], batch: int, device: torch.device) -> Tensor | None:
    """Samples as an index into a batch; None if they are all of it."""
    return None if len(samples) == batch else torch.tensor(samples, device=device)


def check_rows(rows: tuple[Row, ...], members: Sequence[GuidedSample]) -> None:
    """Whether a method may ask for ``rows``.

    Raises:
        ValueError: one is of another method's sample or of none of its concepts, or is asked for twice.
    """
    own = {member.index: (*member.concepts, *member.probed) for member in members}
    for sample, concept in rows:
        if concept not in own.get(sample, ()):
            raise ValueError(
                f"row (sample {sample}, concept {concept}) was asked for, but its samples and their concepts are {own}"
            )
    if len(set(rows)) != len(rows):
        raise ValueError("a row was asked for twice in one step")


def check_own_texts(texts: Mapping[OwnRow, OwnText], members: Sequence[GuidedSample]) -> None:
    """Whether a method may give these rows of the pipeline other texts.

    Raises:
        ValueError: one is of another method's sample, or gets a concept that its policy does not use.
    """
    own = {member.index: member.concepts for member in members}
    for row, text in texts.items():
        if row.sample not in own or row.part not in (UNCOND, COND):
            raise ValueError(
                f"a text was given for {row.part} of sample {row.sample}, but its samples are {sorted(own)}"
            )
        if isinstance(text, int) and text not in own[row.sample]:
            raise ValueError(
                f"concept {text} was given as a text of sample {row.sample}, which has {own[row.sample]}"
            )


def put(lane: Lane, whole: Tensor, made: Tensor) -> Tensor:
    """``whole`` with a method's samples as it made them."""
    if lane.index is None or made is whole:
        return made
    return whole.index_copy(0, lane.index, made.index_select(0, lane.index))


def check_guided(guided: Guided, predictions: Predictions, samples: Sequence[int]) -> None:
    """Whether what a method made of ``predictions`` fits in their place.

    Raises:
        TypeError: other shapes, types or devices.
        ValueError: it says that it changed another method's samples.
    """
    check_like(guided.cond, predictions.cond, "the guided prediction")
    if guided.uncond is not None:
        check_like(guided.uncond, predictions.uncond, "the unconditional prediction")
    if guided.terms.shape != predictions.concepts.shape:
        raise TypeError(f"terms must be {tuple(predictions.concepts.shape)}, got {tuple(guided.terms.shape)}")
    if foreign := set(guided.applied) - set(samples):
        raise ValueError(f"it says that it was applied to samples {sorted(foreign)}, which are not its own")
