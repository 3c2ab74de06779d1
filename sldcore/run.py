"""One guided run of a denoising loop: the rows of each step, the methods, the step hooks, the failures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from sldcore.catalogue import using
from sldcore.encoding import RunConcepts, UsedRow
from sldcore.errors import ConfigurationError, GuidanceError, SafetyFailure
from sldcore.guidance.base import Guidance, GuidanceRun, GuidedSample, StepHook
from sldcore.guidance.windows import acting_steps
from sldcore.hook_lanes import HookLane, check_like, require_untouched, versions
from sldcore.policy import GuidanceSpec, SafetyPolicy
from sldcore.resolution import HookMaker, Resolved, catalogue_for
from sldcore.tracing import Tracer, mean_over_channels
from sldcore.types import Failure, Guided, Predictions, Row, Schedule, Step, Trace

CAUGHT: Final = (Exception, SystemExit)
"""What other people's code may raise without ending more than its own samples; Ctrl-C is not among it."""


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
class StepPlan:
    """One step: the concept rows that it needs, and who needs them."""

    step: Step
    rows: tuple[Row, ...]
    lanes: tuple[tuple[Lane, tuple[Row, ...]], ...]


class GuidedRun:
    """State of one run over B samples, whoever evaluates the rows of its steps.

    At every step :meth:`begin` says which concept rows are needed, and :meth:`finish` combines the predictions.

    With ``strict`` (inside :func:`sldcore.guard`) the first failure raises, because nothing downstream could withhold a
    picture. Otherwise the samples concerned are marked in ``failures``, the others go on.
    """

    def __init__(
        self,
        schedule: Schedule,
        policies: Sequence[SafetyPolicy],
        resolved: Mapping[SafetyPolicy, Resolved],
        concepts: RunConcepts,
        step_hooks: Sequence[StepHook],
        strict: bool,
        device: torch.device,
        spatial: Callable[[Tensor], Tensor] = mean_over_channels,
        parts: int = 2,
    ) -> None:
        self.schedule = schedule
        self.failures: dict[int, list[Failure]] = defaultdict(list)
        self.calls = 0
        self._policies = tuple(policies)
        self._resolved = resolved
        self._concepts = concepts
        self._strict = strict
        self._parts = parts
        self._tracer = Tracer([row.id for row in concepts.rows], len(policies), schedule, spatial, parts)
        self._concept_rows = [0] * len(policies)
        self._spoilt: list[tuple[StepHook, int, Tensor]] = []  # [B] each, on the device until the run is over
        self._applied: set[int] = set()
        self._hooks = self._start_hooks(step_hooks, device)
        self._lanes = self._start_lanes(device)

    @property
    def finished(self) -> bool:
        """True after the last denoiser call of the schedule."""
        return self.calls == len(self.schedule)

    @property
    def hopeless(self) -> bool:
        """True if every sample has failed and further steps are of no use."""
        return len(self.failures) == len(self._policies)

    @property
    def trace(self) -> Trace:
        """The trace so far, moved to the host."""
        return self._tracer.trace

    def rows_of(self, sample: int) -> int:
        """Denoiser rows evaluated for one sample so far: one per part of each step, and its concept rows."""
        return self.plain_rows + self._concept_rows[sample]

    @property
    def plain_rows(self) -> int:
        """Rows of each sample so far that are no concept's."""
        return self._parts * self.calls

    @property
    def batch(self) -> int:
        """Samples of the run."""
        return len(self._policies)

    def begin(self) -> StepPlan:
        """The next step and the concept rows that have to be evaluated for it.

        Raises:
            GuidanceError: there are more steps than the schedule has.
        """
        step = self._next_step()
        lanes = tuple((lane, rows) for lane in self._lanes if (rows := self._rows_of(lane, step)))
        rows = tuple(row for _, lane_rows in lanes for row in lane_rows)
        for row in rows:
            self._concept_rows[row.sample] += 1
        return StepPlan(step, rows, lanes)

    def changes(self, plan: StepPlan) -> bool:
        """Whether :meth:`finish` can change a prediction; if not, there is no need to call it."""
        return bool(plan.rows or self._hooks)

    def finish(self, plan: StepPlan, given: Predictions) -> tuple[Tensor, Tensor]:
        """The unconditional and the safe conditional prediction; the given tensors themselves where nothing acts."""
        predictions = self._before(plan.step, given)
        guided, position = predictions.cond, 0
        for lane, lane_rows in plan.lanes:
            own = predictions.concepts[position : position + len(lane_rows)]
            position += len(lane_rows)
            guided = self._combine(
                lane, plan.step, replace(predictions, cond=guided, concepts=own, rows=lane_rows)
            )
        guided = self._after(plan.step, predictions, guided)
        return predictions.uncond, guided

    def nonfinite(self) -> dict[int, Failure]:
        """Samples whose predictions or safety terms were NaN or Inf at some step, the first such step each."""
        events: list[
            tuple[int, int, Failure]
        ] = []  # step, sample; hooks come first where both speak of one step
        for hook, step, spoilt in self._spoilt:
            message = "NaN or Inf in what the step hook gave back"
            failure = Failure(hook.name, hook.version, message, step)
            events += [(step, sample, failure) for sample in spoilt.nonzero().flatten().tolist()]
        for row, step in self._tracer.broken:
            concept = self._concepts.rows[row.concept].id
            method = next(lane.method for lane in self._lanes if row.sample in lane.samples)
            message = f"NaN or Inf in a prediction or safety term, concept '{concept}'"
            events.append((step, row.sample, Failure(method.name, method.version, message, step)))
        found: dict[int, Failure] = {}
        for _, sample, failure in sorted(events, key=lambda event: event[0]):
            found.setdefault(sample, failure)
        return found

    def _start_hooks(self, everywhere: Sequence[StepHook], device: torch.device) -> tuple[HookLane, ...]:
        """The caller's hooks for all samples, then those that policies name, each for the samples of these policies."""
        whole = tuple(range(len(self._policies)))
        lanes = [HookLane(hook, whole, None) for hook in everywhere]
        chains: dict[tuple[HookMaker, ...], list[int]] = {}
        for sample, policy in enumerate(self._policies):
            chains.setdefault(self._resolved[policy].step_hooks, []).append(sample)
        for makers, samples in chains.items():  # in the order of these policies, whatever that of others
            for maker in makers:
                try:
                    lanes.append(HookLane(maker.make(), tuple(samples), self._index(samples, device)))
                except CAUGHT as error:
                    self._fail(samples, maker.name, maker.version, error, None)
        return tuple(lanes)

    def _index(self, samples: Sequence[int], device: torch.device) -> Tensor | None:
        """Samples as an index into the batch; None if they are all of it."""
        return None if len(samples) == len(self._policies) else torch.tensor(samples, device=device)

    def _start_lanes(self, device: torch.device) -> list[Lane]:
        # By contribution, not by name: plugin files of two policies may have methods of one name.
        samples: dict[Any, list[GuidedSample]] = defaultdict(list)
        methods: dict[Any, Guidance] = {}
        seen: dict[SafetyPolicy, GuidedSample] = {}
        for index, policy in enumerate(self._policies):
            resolved = self._resolved[policy]
            if resolved.method is not None and resolved.spec is not None:
                if policy not in seen:  # windows are evaluated once for all samples of a policy
                    seen[policy] = self._guided_sample(index, policy, resolved.spec)
                samples[resolved.kind].append(replace(seen[policy], index=index))
                methods.setdefault(resolved.kind, resolved.method)
        lanes = []
        for kind, members in samples.items():
            method, indices = methods[kind], tuple(member.index for member in members)
            try:
                started = method.start(members, self.schedule)
                lanes.append(Lane(method, started, tuple(members), self._index(indices, device)))
            except ConfigurationError:
                raise
            except CAUGHT as error:
                self._fail(indices, method.name, method.version, error, None)
        return lanes

    def _guided_sample(self, index: int, policy: SafetyPolicy, spec: GuidanceSpec) -> GuidedSample:
        used = self._concepts.used[policy]
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
            concept = self._concepts.rows[used.row].concept
            raise GuidanceError(
                f"the window of concept '{concept}' and that of the guidance are never open together, so the concept would "
                f"never act; widen one of them"
            )
        return own

    def _next_step(self) -> Step:
        if self.finished:
            raise GuidanceError(
                f"the denoiser was called more often than the {len(self.schedule)} times of its schedule; guidance cannot "
                f"tell which step this is"
            )
        self.calls += 1
        return self.schedule.step(self.calls - 1)

    def _rows_of(self, lane: Lane, step: Step) -> tuple[Row, ...]:
        if lane.failed:
            return ()
        try:
            rows = tuple(Row(*row) for row in lane.run.rows(step))
            _check_rows(rows, lane.members)
            return rows
        except CAUGHT as error:
            self._fail_lane(lane, error, step)
            return ()

    def _combine(self, lane: Lane, step: Step, predictions: Predictions) -> Tensor:
        before = versions(predictions)
        try:
            guided = lane.run.combine(step, predictions)
            _check_guided(guided, predictions, lane.samples)
            self._tracer.record(step, predictions, guided)
        except CAUGHT as error:
            self._fail_lane(lane, error, step)
            return predictions.cond
        try:
            require_untouched(before, predictions)
        except TypeError as error:  # what it was given belongs to the other samples too
            lane.failed = True
            self._fail(range(len(self._policies)), lane.method.name, lane.method.version, error, step)
            return predictions.cond
        self._applied.update(guided.applied)
        if lane.index is None or guided.cond is predictions.cond:
            return guided.cond
        return predictions.cond.index_copy(0, lane.index, guided.cond.index_select(0, lane.index))

    def _before(self, step: Step, predictions: Predictions) -> Predictions:
        for lane in self._hooks:
            try:
                edited = lane.before(step, predictions)
                self._watch(lane.hook, step, predictions.uncond, edited.uncond)
                self._watch(lane.hook, step, predictions.cond, edited.cond)
                predictions = edited
            except CAUGHT as error:
                self._fail_hook(lane, error, step)
        return predictions

    def _after(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor:
        for lane in self._hooks:
            try:
                edited = lane.after(step, predictions, guided)
                self._watch(lane.hook, step, guided, edited)
                guided = edited
            except CAUGHT as error:
                self._fail_hook(lane, error, step)
        return guided

    def idle(self) -> dict[int, Failure]:
        """Samples of a finished run that a method should have guided and never did.

        Policies that ask for nothing (scale or all weights 0) are not among them.
        """
        found = {}
        for lane in self._lanes:
            for member in lane.members:
                nothing = member.spec.method == "sld" and member.spec.options["scale"] == 0
                asks = any(member.weights) and not nothing
                if asks and not lane.failed and member.index not in self._applied:
                    message = "the method never guided this picture, though its window was open"
                    found[member.index] = Failure(lane.method.name, lane.method.version, message)
        return found

    def _watch(self, hook: StepHook, step: Step, given: Tensor, returned: Tensor) -> None:
        """Note which samples a hook spoilt, without waiting for the device."""
        if returned is not given:
            spoilt = given.isfinite().flatten(1).all(1) & ~returned.isfinite().flatten(1).all(1)
            self._spoilt.append((hook, step.index, spoilt))

    def _fail_hook(self, lane: HookLane, error: BaseException, step: Step) -> None:
        self._hooks = tuple(other for other in self._hooks if other is not lane)
        self._fail(lane.samples, lane.hook.name, lane.hook.version, error, step)

    def _fail_lane(self, lane: Lane, error: BaseException, step: Step) -> None:
        lane.failed = True
        self._fail(lane.samples, lane.method.name, lane.method.version, error, step)

    def _fail(
        self, samples: Sequence[int], source: str, version: str, error: BaseException, step: Step | None
    ) -> None:
        at = None if step is None else step.index
        failure = Failure(source, version, f"{type(error).__name__}: {error}", at)
        if self._strict or any(self._policies[sample].on_error == "raise" for sample in samples):
            raise SafetyFailure(f"{source} {version} failed at step {at}: {failure.error}") from error
        for sample in samples:
            self.failures[sample].append(failure)


def _check_rows(rows: tuple[Row, ...], members: Sequence[GuidedSample]) -> None:
    own = {member.index: member.concepts for member in members}
    for sample, concept in rows:
        if concept not in own.get(sample, ()):
            raise ValueError(
                f"row (sample {sample}, concept {concept}) was asked for, but its samples and their concepts are {own}"
            )
    if len(set(rows)) != len(rows):
        raise ValueError("a row was asked for twice in one step")


def _check_guided(guided: Guided, predictions: Predictions, samples: Sequence[int]) -> None:
    check_like(guided.cond, predictions.cond, "the guided prediction")
    if guided.terms.shape != predictions.concepts.shape:
        raise TypeError(f"terms must be {tuple(predictions.concepts.shape)}, got {tuple(guided.terms.shape)}")
    if foreign := set(guided.applied) - set(samples):
        raise ValueError(f"it says that it was applied to samples {sorted(foreign)}, which are not its own")
