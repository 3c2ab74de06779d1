"""One guided run of a denoising loop: the rows of each step, the methods, the step hooks, the failures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from sldcore.encoding import RunConcepts
from sldcore.errors import ConfigurationError, GuidanceError, SafetyFailure
from sldcore.guidance.base import (
    ActsWithoutRows,
    LeavesOut,
    Observes,
    OwnText,
    PromptTexts,
    StepHook,
    SwapsTexts,
)
from sldcore.guidance.gate import GateRun
from sldcore.hook_lanes import HookLane, require_untouched, versions
from sldcore.lanes import Lane, Starting, check_guided, check_own_texts, check_rows, index_of, put
from sldcore.policy import SafetyPolicy
from sldcore.resolution import HookMaker, Resolved
from sldcore.tracing import Tracer, mean_over_channels
from sldcore.types import Failure, Guided, OwnRow, Predictions, Probe, Row, Schedule, Step, Trace

CAUGHT: Final = (Exception, SystemExit)
"""What other people's code may raise without ending more than its own samples; Ctrl-C is not among it."""


SCALED: Final = ("sld", "casg")
"""Methods that do nothing, as asked, where their ``scale`` is 0."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: the concept rows that it needs, and who needs them.

    ``own_texts`` are other texts for the pipeline's own rows, ``left_out`` samples whose own rows need not be evaluated, and
    ``observed`` says that the concept rows are only looked at.
    """

    step: Step
    rows: tuple[Row, ...]
    lanes: tuple[tuple[Lane, tuple[Row, ...]], ...]
    own_texts: Mapping[OwnRow, OwnText] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()
    observed: bool = False


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
        prompts: PromptTexts | None = None,
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
        self._spared_rows = [0] * len(policies)
        self._spoilt: list[tuple[StepHook, int, Tensor]] = []  # [B] each, on the device until the run is over
        self._unsound: list[tuple[int, Tensor]] = []  # the same
        self._applied: set[int] = set()
        self._hooks = self._start_hooks(step_hooks, device)
        starting = Starting(schedule, self._policies, resolved, concepts, prompts)
        self._lanes = self._start_lanes(starting, device)

    @property
    def finished(self) -> bool:
        """True after the last denoiser call of the schedule."""
        return self.calls == len(self.schedule)

    @property
    def hopeless(self) -> bool:
        """True if every sample has failed or is to be made again, and further steps are of no use."""
        return len({*self.failures, *self.restarts}) == len(self._policies)

    @property
    def gates(self) -> dict[int, tuple[Probe, ...]]:
        """What gates saw and decided so far, per sample."""
        return {
            sample: lane.run.probes_of(sample, self._concepts.names_in(self._policies[sample]))
            for lane in self._lanes
            if isinstance(lane.run, GateRun)
            for sample in lane.samples
        }

    @property
    def restarts(self) -> frozenset[int]:
        """Samples that are to be made again, guided from the first step."""
        runs = [lane.run for lane in self._lanes if isinstance(lane.run, GateRun)]
        return frozenset(sample for run in runs for sample in run.restarts)

    @property
    def trace(self) -> Trace:
        """The trace so far, moved to the host."""
        return self._tracer.trace

    def rows_of(self, sample: int) -> int:
        """Denoiser rows evaluated for one sample so far: one per part of each step, and its concept rows."""
        return self.plain_rows + self._concept_rows[sample] - self._spared_rows[sample]

    @property
    def plain_rows(self) -> int:
        """Rows of each sample so far that are no concept's."""
        return self._parts * self.calls

    @property
    def batch(self) -> int:
        """Samples of the run."""
        return len(self._policies)

    def begin(self, *, sparing: bool = False) -> StepPlan:
        """The next step and the concept rows that have to be evaluated for it.

        Args:
            sparing: rows of the pipeline that nobody needs are not evaluated (all but the first sample's, so that there is
                something to evaluate).

        Raises:
            GuidanceError: there are more steps than the schedule has.
        """
        step = self._next_step()
        lanes = tuple((lane, rows) for lane in self._lanes if (rows := self._rows_of(lane, step)) is not None)
        rows = tuple(row for _, lane_rows in lanes for row in lane_rows)
        for row in rows:
            self._concept_rows[row.sample] += 1
        wanted = frozenset(sample for lane in self._lanes for sample in self._left_out(lane, step))
        out = wanted if sparing else frozenset[int]()
        for sample in out if len(out) < self.batch else out - {0}:
            self._spared_rows[sample] += self._parts
        observed = all(isinstance(lane.run, Observes) and lane.run.observes(step) for lane, _ in lanes)
        return StepPlan(step, rows, lanes, self._own_texts(step), out, bool(rows) and observed)

    def changes(self, plan: StepPlan) -> bool:
        """Whether :meth:`finish` can change a prediction or look at one; if not, there is no need to call it."""
        return bool(plan.lanes or plan.own_texts or self._hooks)

    def finish(self, plan: StepPlan, given: Predictions) -> tuple[Tensor, Tensor]:
        """The unconditional and the safe conditional prediction; the given tensors themselves where nothing acts."""
        predictions = self._before(plan.step, given)
        uncond, guided, position = predictions.uncond, predictions.cond, 0
        for lane, lane_rows in plan.lanes:
            own = predictions.concepts[position : position + len(lane_rows)]
            position += len(lane_rows)
            if lane.failed:
                continue
            seen = replace(predictions, cond=guided, concepts=own, rows=lane_rows)
            made = self._combine(lane, plan.step, seen)
            if made is not None:
                guided = put(lane, guided, made.cond)
                uncond = uncond if made.uncond is None else put(lane, uncond, made.uncond)
        self._note_swaps(plan)
        guided = self._after(plan.step, predictions, guided)
        if plan.lanes or plan.own_texts:  # methods without rows leave nothing in the trace by which to tell
            sound = uncond.isfinite().flatten(1).all(1) & guided.isfinite().flatten(1).all(1)
            self._unsound.append((plan.step.index, ~sound))
        return uncond, guided

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
        methods = {sample: lane.method for lane in self._lanes for sample in lane.samples}
        for step, spoilt in self._unsound:
            for sample in spoilt.nonzero().flatten().tolist():
                if sample in methods:
                    source, message = (
                        methods[sample],
                        "NaN or Inf in a prediction that is handed to the pipeline",
                    )
                    events.append((step, sample, Failure(source.name, source.version, message, step)))
        found: dict[int, Failure] = {}
        given_up = self._given_up
        for step, sample, failure in sorted(events, key=lambda event: event[0]):
            if step <= given_up.get(sample, step):
                found.setdefault(sample, failure)
        return found

    @property
    def _given_up(self) -> dict[int, int]:
        """The step of the probe after which a sample was left to another pass."""
        return {
            sample: next(probe.step for probe in self.gates[sample] if probe.restarts)
            for sample in self.restarts
        }

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
                    lanes.append(
                        HookLane(maker.make(), tuple(samples), index_of(samples, self.batch, device))
                    )
                except CAUGHT as error:
                    self._fail(samples, maker.name, maker.version, error, None)
        return tuple(lanes)

    def _start_lanes(self, starting: Starting, device: torch.device) -> list[Lane]:
        lanes = []
        for method, members in starting.groups():
            indices = tuple(member.index for member in members)
            try:
                started = starting.run(method, members)
                lanes.append(Lane(method, started, members, index_of(indices, self.batch, device)))
            except ConfigurationError:
                raise
            except CAUGHT as error:
                self._fail(indices, method.name, method.version, error, None)
        return lanes

    def _next_step(self) -> Step:
        if self.finished:
            raise GuidanceError(
                f"the denoiser was called more often than the {len(self.schedule)} times of its schedule; guidance cannot "
                f"tell which step this is"
            )
        self.calls += 1
        return self.schedule.step(self.calls - 1)

    def _rows_of(self, lane: Lane, step: Step) -> tuple[Row, ...] | None:
        """The rows that a method needs; None where it has nothing to do."""
        if lane.failed:
            return None
        try:
            rows = tuple(Row(*row) for row in lane.run.rows(step))
            check_rows(rows, lane.members)
            acts = bool(rows) or (isinstance(lane.run, ActsWithoutRows) and lane.run.acts(step))
            return rows if acts else None
        except CAUGHT as error:
            self._fail_lane(lane, error, step)
            return None

    def _left_out(self, lane: Lane, step: Step) -> frozenset[int]:
        """Samples that a method needs no more, all of which are made again: other pictures would not be the model's."""
        if lane.failed or not isinstance(lane.run, LeavesOut):
            return frozenset()
        try:
            out = frozenset(lane.run.left_out(step))
            again = lane.run.restarts if isinstance(lane.run, GateRun) else frozenset[int]()
            if lost := out - again:
                raise ValueError(f"samples {sorted(lost)} were left out, and nothing makes them again")
            return out
        except CAUGHT as error:
            self._fail_lane(lane, error, step)
            return frozenset()

    def _own_texts(self, step: Step) -> dict[OwnRow, OwnText]:
        """Other texts for the pipeline's own rows."""
        texts: dict[OwnRow, OwnText] = {}
        for lane in self._lanes:
            if lane.failed or not isinstance(lane.run, SwapsTexts):
                continue
            try:
                own = {OwnRow(*row): text for row, text in lane.run.own_texts(step).items()}
                check_own_texts(own, lane.members)
                texts |= own
            except CAUGHT as error:
                self._fail_lane(lane, error, step)
        return texts

    def _note_swaps(self, plan: StepPlan) -> None:
        """Own rows with another text count as guided by it, or by all of the sample's concepts if it is none of them."""
        if plan.own_texts:
            concepts = {member.index: member.concepts for lane in self._lanes for member in lane.members}
            rows = [
                Row(row.sample, concept)
                for row, text in plan.own_texts.items()
                for concept in ((text,) if isinstance(text, int) else concepts[row.sample])
            ]
            self._tracer.note(plan.step, rows)
            self._applied.update(row.sample for row in plan.own_texts)

    def _combine(self, lane: Lane, step: Step, predictions: Predictions) -> Guided | None:
        """What a method makes of its predictions; None if it fails."""
        before = versions(predictions)
        try:
            guided = lane.run.combine(step, predictions)
            check_guided(guided, predictions, lane.samples)
            self._tracer.record(step, predictions, guided)
        except CAUGHT as error:
            self._fail_lane(lane, error, step)
            return None
        try:
            require_untouched(before, predictions)
        except TypeError as error:  # what it was given belongs to the other samples too
            lane.failed = True
            self._fail(range(len(self._policies)), lane.method.name, lane.method.version, error, step)
            return None
        evaluated = {row.sample for row in predictions.rows}
        without = [sample for sample in guided.applied if sample not in evaluated]
        if without:
            concepts = {member.index: member.concepts for member in lane.members}
            self._tracer.note(step, [Row(sample, k) for sample in without for k in concepts[sample]])
        self._applied.update(guided.applied)
        return guided

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
            excused = lane.run.unguided if isinstance(lane.run, GateRun) else frozenset()
            for member in lane.members:
                nothing = member.spec.method in SCALED and member.spec.options["scale"] == 0
                asks = any(member.weights) and not nothing
                if asks and not lane.failed and member.index not in {*self._applied, *excused}:
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
