"""One guided run of a denoising loop: the rows of each step, the methods, the step hooks, the failures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sldcore.denoiser import DenoiserCall, Forward
from sldcore.encoding import RunConcepts
from sldcore.errors import ConfigurationError, GuidanceError, SafetyFailure
from sldcore.guidance.base import Guidance, GuidanceRun, GuidedSample, StepHook
from sldcore.guidance.methods import method_named
from sldcore.policy import SafetyPolicy
from sldcore.tracing import Tracer
from sldcore.types import Failure, Guided, Predictions, Row, Schedule, Step, Trace


@dataclass(slots=True)
class Lane:
    """The samples of a run that share a guidance method, and the method's state."""

    method: Guidance
    run: GuidanceRun
    samples: tuple[int, ...]
    failed: bool = False


class GuidedRun:
    """State of one run over B samples.

    With ``strict`` (inside :func:`sldcore.guard`) the first failure raises, because nothing downstream could withhold a
    picture. Otherwise the samples concerned are marked in ``failures``, the others go on.
    """

    def __init__(
        self,
        schedule: Schedule,
        policies: Sequence[SafetyPolicy],
        concepts: RunConcepts,
        step_hooks: Sequence[StepHook],
        strict: bool,
    ) -> None:
        self.schedule = schedule
        self.failures: dict[int, list[Failure]] = defaultdict(list)
        self.calls = 0
        self._policies = tuple(policies)
        self._concepts = concepts
        self._hooks = tuple(step_hooks)
        self._strict = strict
        self._tracer = Tracer([row.id for row in concepts.rows], len(policies), schedule)
        self._concept_rows = [0] * len(policies)
        self._inputs: dict[tuple[Row, ...], tuple[Tensor | slice, dict[str, Tensor]]] = {}
        self._spoilt: list[tuple[StepHook, int, Tensor]] = []  # [B] each, on the device until the run is over
        self._lanes = self._start_lanes()

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
        """Denoiser rows evaluated for one sample so far: two per call, and its concept rows."""
        return 2 * self.calls + self._concept_rows[sample]

    def call(self, forward: Forward, call: DenoiserCall) -> Any:
        """One denoiser call: extend, evaluate, combine, hand back [u; c']."""
        step = self._next_step()
        lanes = [(lane, rows) for lane in self._lanes if (rows := self._rows_of(lane, step))]
        rows = tuple(row for _, lane_rows in lanes for row in lane_rows)
        bound = call.with_rows(*self._inputs_of(rows, call)) if rows else call.bound
        for row in rows:
            self._concept_rows[row.sample] += 1
        output = forward(*bound.args, **bound.kwargs)
        if not rows and not self._hooks:
            return output
        uncond, cond, concepts = call.split(output)
        predictions = self._before(step, Predictions(uncond, cond, concepts, rows))
        guided, position = predictions.cond, 0
        for lane, lane_rows in lanes:
            own = predictions.concepts[position : position + len(lane_rows)]
            position += len(lane_rows)
            guided = self._combine(
                lane, step, replace(predictions, cond=guided, concepts=own, rows=lane_rows)
            )
        guided = self._after(step, predictions, guided)
        if guided is cond and predictions.uncond is uncond:
            return call.cut(output) if rows else output
        return call.join(output, predictions.uncond, guided)

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

    def _start_lanes(self) -> list[Lane]:
        samples: dict[str, list[GuidedSample]] = defaultdict(list)
        for index, policy in enumerate(self._policies):
            if policy.guidance is not None:
                used = self._concepts.used[policy]
                rows, weights = tuple(row for row, _ in used), tuple(weight for _, weight in used)
                samples[policy.guidance.method].append(GuidedSample(index, policy.guidance, rows, weights))
        lanes = []
        for name, members in samples.items():
            method, indices = method_named(name), tuple(member.index for member in members)
            try:
                lanes.append(Lane(method, method.start(members, self.schedule), indices))
            except ConfigurationError:
                raise
            except Exception as error:
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

    def _rows_of(self, lane: Lane, step: Step) -> tuple[Row, ...]:
        if lane.failed:
            return ()
        try:
            rows = tuple(lane.run.rows(step))
            _check_rows(rows, lane.samples, len(self._concepts.rows))
            return rows
        except Exception as error:
            self._fail_lane(lane, error, step)
            return ()

    def _inputs_of(
        self, rows: tuple[Row, ...], call: DenoiserCall
    ) -> tuple[Tensor | slice, dict[str, Tensor]]:
        """What the rows copy and which texts they get; made once per set of rows, so that no step waits for the host."""
        if rows not in self._inputs:
            texts = self._concepts.for_rows(rows, call.latents.device)
            self._inputs[rows] = call.conditional_rows(rows), texts
        return self._inputs[rows]

    def _combine(self, lane: Lane, step: Step, predictions: Predictions) -> Tensor:
        try:
            guided = lane.run.combine(step, predictions)
            _check_guided(guided, predictions)
            self._tracer.record(step, predictions, guided)
        except Exception as error:
            self._fail_lane(lane, error, step)
            return predictions.cond
        return guided.cond

    def _before(self, step: Step, predictions: Predictions) -> Predictions:
        for hook in self._hooks:
            try:
                edited = hook.before_guidance(step, predictions)
                if edited is not None:
                    _check_predictions(edited, predictions)
                    self._watch(hook, step, predictions.uncond, edited.uncond)
                    self._watch(hook, step, predictions.cond, edited.cond)
                    predictions = edited
            except Exception as error:
                self._fail_hook(hook, error, step)
        return predictions

    def _after(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor:
        for hook in self._hooks:
            try:
                edited = hook.after_guidance(step, predictions, guided)
                if edited is not None:
                    _check_like(edited, guided, "the guided prediction")
                    self._watch(hook, step, guided, edited)
                    guided = edited
            except Exception as error:
                self._fail_hook(hook, error, step)
        return guided

    def _watch(self, hook: StepHook, step: Step, given: Tensor, returned: Tensor) -> None:
        """Note which samples a hook spoilt, without waiting for the device."""
        if returned is not given:
            spoilt = given.isfinite().flatten(1).all(1) & ~returned.isfinite().flatten(1).all(1)
            self._spoilt.append((hook, step.index, spoilt))

    def _fail_hook(self, hook: StepHook, error: Exception, step: Step) -> None:
        self._hooks = tuple(other for other in self._hooks if other is not hook)
        self._fail(range(len(self._policies)), hook.name, hook.version, error, step)

    def _fail_lane(self, lane: Lane, error: Exception, step: Step) -> None:
        lane.failed = True
        self._fail(lane.samples, lane.method.name, lane.method.version, error, step)

    def _fail(
        self, samples: Sequence[int], source: str, version: str, error: Exception, step: Step | None
    ) -> None:
        at = None if step is None else step.index
        failure = Failure(source, version, f"{type(error).__name__}: {error}", at)
        if self._strict or any(self._policies[sample].on_error == "raise" for sample in samples):
            raise SafetyFailure(f"{source} {version} failed at step {at}: {failure.error}") from error
        for sample in samples:
            self.failures[sample].append(failure)


def _check_like(value: Any, model: Tensor, what: str) -> None:
    if not isinstance(value, Tensor) or _kind(value) != _kind(model):
        got = _kind(value) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{what} must stay a tensor {_kind(model)}, got {got}")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _check_rows(rows: tuple[Row, ...], samples: Sequence[int], concepts: int) -> None:
    for sample, concept in rows:
        if sample not in samples or not 0 <= concept < concepts:
            raise ValueError(
                f"row (sample {sample}, concept {concept}) was asked for, but there are samples {list(samples)} and "
                f"{concepts} concepts"
            )
    if len(set(rows)) != len(rows):
        raise ValueError("a row was asked for twice in one step")


def _check_guided(guided: Guided, predictions: Predictions) -> None:
    _check_like(guided.cond, predictions.cond, "the guided prediction")
    if guided.terms.shape != predictions.concepts.shape:
        raise TypeError(f"terms must be {tuple(predictions.concepts.shape)}, got {tuple(guided.terms.shape)}")


def _check_predictions(edited: Predictions, predictions: Predictions) -> None:
    for name in ("uncond", "cond", "concepts"):
        _check_like(getattr(edited, name), getattr(predictions, name), name)
    if edited.rows != predictions.rows:
        raise TypeError("a step hook cannot change which rows were evaluated")
