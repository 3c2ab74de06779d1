"""What one pipeline call gave: pictures as they were made, what is known of each, and what went wrong on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sldcore.errors import SafetyFailure
from sldcore.filters.base import PictureContext
from sldcore.filters.chain import Findings
from sldcore.filters.pipeline_checker import CheckerReview
from sldcore.frames import Pixels
from sldcore.policy import SafetyPolicy
from sldcore.request import Sample
from sldcore.review import Made, action_of, blocking, decide, reason_of
from sldcore.run import GuidedRun
from sldcore.session import Session
from sldcore.tracing import empty_trace, replaced_samples
from sldcore.types import Failure, Report, Trace

PENDING: Final = Failure("gate", "", "a concept was found, and the guided picture was not made")
"""What is said of a picture that a gate wants made again, so that it stays back if it is not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pipeline call gave: pictures as the pipeline made them, what must happen to each, and the trace."""

    made: tuple[Made, ...]
    trace: Trace
    scheduler: str = ""

    @property
    def reports(self) -> tuple[Report, ...]:
        """One report per picture."""
        return tuple(each.report for each in self.made)

    @property
    def pixels(self) -> NDArray[np.float32]:
        """The pictures as they were made, [B, H, W, 3] (videos [B, F, H, W, 3]) in 0..1.

        They have not been acted upon: use :meth:`shown`.
        """
        return np.stack([each.pixels for each in self.made])

    def shown(self) -> NDArray[np.float32]:
        """The pixels that may be shown: pictures that are withheld are black."""
        kept = np.array([not report.withheld for report in self.reports])
        pixels = self.pixels
        return np.where(kept.reshape(-1, *(1,) * (pixels.ndim - 1)), pixels, np.float32(0))


def failures_of(
    session: Session, samples: Sequence[Sample], pixels: Sequence[Pixels], review: CheckerReview
) -> list[tuple[Failure, ...]]:
    """Everything that went wrong before the filters looked, per picture."""
    found: list[list[Failure]] = [[] for _ in samples]
    if not session.runs:
        for index, sample in enumerate(samples):
            if sample.policy.guides:
                found[index].append(Failure("engine", "", "the pipeline never called the guarded denoiser"))
    again = pending(session)
    for run in session.runs:
        for index in range(len(samples)):
            found[index] += run.failures.get(index, [])
            if not run.finished and not found[index] and index not in again:
                message = f"the pipeline stopped after {run.calls} of {len(run.schedule)} denoiser calls"
                found[index].append(Failure("engine", "", message))
        for index, failure in [*run.nonfinite().items(), *(run.idle().items() if run.finished else ())]:
            found[index].append(failure)
    if session.waiting:
        message = "the denoiser was called once at the last step and not again, so guidance was off"
        for failures in found:
            failures += [] if failures else [Failure("engine", "", message)]
    for index, picture in enumerate(pixels):
        if index in again:  # it was given up on the way, and is not shown
            continue
        if not np.isfinite(picture).all():
            found[index].append(Failure("engine", "", "the decoded picture contains NaN or Inf"))
        found[index] += review.of(index)[1]
    return [tuple(failures) for failures in found]


def pending(session: Session) -> frozenset[int]:
    """Pictures that a gate wants made again."""
    return frozenset(index for run in session.runs for index in run.restarts)


def judged(report: Report, findings: Findings, policy: SafetyPolicy, *, again: bool) -> Report:
    """The report with what must happen to the picture; one that is to be made ``again`` stays back, without more ado."""
    if not again or findings.failures:
        return decide(report, findings, policy)
    findings.failures.append(PENDING)
    return replace(report, action="block", errors=(PENDING,))


def report_of(
    sample: Sample, context: PictureContext, runs: Sequence[GuidedRun] = (), index: int = 0
) -> Report:
    """The report of a picture, the ``index``-th of its ``runs``, before anything is said about it."""
    return Report(
        prompt=sample.prompt,
        seed=sample.seed,
        policy=sample.policy.name,
        policy_digest=sample.policy.digest,
        concepts=dict(context.concepts),
        rows=sum(run.rows_of(index) for run in runs),
        plain_rows=sum(run.plain_rows for run in runs),
        probes=tuple(probe for run in runs for probe in run.gates.get(index, ())),
    )


def stopped(findings: Findings, policy: SafetyPolicy) -> bool:
    """Whether a prompt filter keeps a picture from being made.

    Raises:
        SafetyFailure: the policy says ``raise``.
    """
    for use, _ in findings.flagged_by:
        if action_of(use).do == "raise":
            raise SafetyFailure(f"{reason_of(findings)} (policy '{policy.name}')")
    return blocking(findings.failures, policy) or any(
        action_of(use).do != "flag" for use, _ in findings.flagged_by
    )


def add_prompt(made: Made, on_prompt: Findings) -> None:
    """Put what was said of the prompt in front of what was said of the picture, and decide again."""
    made.findings.verdicts[:0] = on_prompt.verdicts
    made.findings.failures[:0] = on_prompt.failures
    made.findings.flagged_by[:0] = on_prompt.flagged_by
    made.report = decide(made.report, made.findings, made.context.policy)


def replaced(outcome: Outcome, chosen: Sequence[int], later: Outcome) -> Outcome:
    """``outcome`` with some pictures replaced by those of a later call."""
    made = list(outcome.made)
    for index, each in zip(chosen, later.made, strict=True):
        made[index] = each
    return Outcome(
        tuple(made),
        replaced_samples(outcome.trace, chosen, later.trace),
        outcome.scheduler or later.scheduler,
    )


def read_only(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy that nobody can write to: the original belongs to the trace."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def trace_of(session: Session, samples: Sequence[Sample]) -> Trace:
    """The run's trace, or an empty one for a run without classifier-free guidance."""
    if session.run is not None:
        return session.run.trace
    return empty_trace(len(samples))


def is_plain(value: Any) -> bool:
    """True for what JSON can hold as it is: arguments that are tensors, pictures or functions are not recorded."""
    if isinstance(value, list | tuple):
        return all(is_plain(part) for part in value)
    return value is None or isinstance(value, str | int | float | bool)
