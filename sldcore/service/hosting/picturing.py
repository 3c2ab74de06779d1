"""Pictures for a batch of jobs: one engine call for all of them, split where something is wrong with one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final

import torch
from PIL import Image

from sldcore import __version__
from sldcore.errors import ConfigurationError, SafetyFailure
from sldcore.policy import SafetyPolicy
from sldcore.service.hosting.explaining import account_of, curves_of, failure_account, heat_of, recording
from sldcore.service.hosting.following import Cancelled, CancelledJobs, Emit, Following, told
from sldcore.service.hosting.hosted_engine import JobPrompt
from sldcore.service.hosting.hosted_models import HostedModel
from sldcore.service.hosting.png_files import png_bytes, with_account
from sldcore.service.hosting.previews import Previews
from sldcore.service.hosting.redaction import for_clients, traceback_text
from sldcore.service.jobs import Answer, Failed, Job, PictureAnswer, PictureJob
from sldcore.types import Failure, Report, Trace

logger = logging.getLogger("sldcore.service")

RAISED: Final = "something of the policy failed or flagged the picture, and the policy says `raise` for it"
BROKEN: Final = "something broke while the picture was made; the operator's log says what"
TOO_LARGE: Final = "the picture does not fit into the device's memory; ask for a smaller one"


@dataclass(frozen=True, slots=True)
class Made:
    """One picture of an engine call, after the actions of its policy."""

    image: Image.Image | None
    report: Report
    trace: Trace
    sample: int
    provenance: dict[str, Any]
    seconds: float
    """Of the whole engine call."""


class Picturing:
    """One batch of jobs of one shape.

    Args:
        model: what makes the pictures.
        jobs: of that model and of equal shape.
        emit: takes progress and pictures of the way.
        cancelled: the ids of jobs for which nobody waits.
    """

    def __init__(
        self, model: HostedModel, jobs: Sequence[PictureJob], emit: Emit, cancelled: CancelledJobs
    ) -> None:
        self._model, self._jobs, self._emit, self._cancelled = model, jobs, emit, cancelled
        self._sent: Counter[str] = Counter()
        self._attempts: Counter[str] = Counter()

    def answers(self) -> list[Answer]:
        """One answer per job, in order."""
        made = self._made(self._jobs, [job.policy for job in self._jobs], partials=True)
        plain = self._unguided(made)
        return [
            self._answer(job, each, plain.get(job.id)) for job, each in zip(self._jobs, made, strict=True)
        ]

    def _unguided(self, made: Sequence[Made | Failed]) -> dict[str, Made | Failed]:
        """The same pictures without guidance, where they were asked for and there are pictures to compare them with."""
        asked = [
            job for job, each in zip(self._jobs, made, strict=True) if job.unguided and isinstance(each, Made)
        ]
        plain = self._made(asked, [recording(job.policy) for job in asked], partials=False) if asked else []
        return {job.id: each for job, each in zip(asked, plain, strict=True)}

    def _made(
        self, jobs: Sequence[PictureJob], policies: Sequence[SafetyPolicy], *, partials: bool
    ) -> list[Made | Failed]:
        """Pictures under ``policies``; where the engine refuses a batch, its halves are tried, down to the job that is to blame."""
        failed: Failed
        try:
            return [*self._call(jobs, policies, partials=partials)]
        except Cancelled:
            return [cancelled_answer(job) for job in jobs]
        except torch.cuda.OutOfMemoryError:
            logger.warning("out of memory with a batch of %d", len(jobs))
            failed = Failed(jobs[0].id, "failed", TOO_LARGE)
        except Exception as error:
            failed = _failed(jobs, error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(jobs) == 1:
            return [failed]
        half = len(jobs) // 2
        return [
            *self._made(jobs[:half], policies[:half], partials=partials),
            *self._made(jobs[half:], policies[half:], partials=partials),
        ]

    def _call(
        self, jobs: Sequence[PictureJob], policies: Sequence[SafetyPolicy], *, partials: bool
    ) -> list[Made]:
        engine = self._model.engine
        asked = partials and any(job.partials for job in jobs)
        show: Callable[[Any], None] = lambda event: told(self._emit, event)  # noqa: E731
        previews = Previews(engine, jobs, show, self._sent) if asked else None
        following = Following(
            jobs, self._emit, self._cancelled, previews, Counter() if partials else self._attempts
        )
        following.stop_if_cancelled()
        started = perf_counter()
        with engine.followed_by(following):
            result = engine.generate(
                [JobPrompt.of(job.prompt, number) for number, job in enumerate(jobs)],
                seed=[job.seed for job in jobs],
                policies=policies,
                **self._model.arguments(jobs[0].shape),
            )
        seconds = perf_counter() - started
        self._attempts |= following.attempts
        return [
            Made(
                result.images[index],
                replace(report, prompt=jobs[index].prompt),
                result.trace,
                index,
                self._model.facts(result.provenance, policies[index]),
                seconds,
            )
            for index, report in enumerate(result.reports)
        ]

    def _answer(self, job: PictureJob, made: Made | Failed, plain: Made | Failed | None) -> Answer:
        if isinstance(made, Failed):
            return made
        try:
            answer = self._guided_answer(job, made)
            return answer if plain is None else self._with_unguided(job, answer, plain)
        except Exception as error:
            return _failed([job], error)

    def _guided_answer(self, job: PictureJob, made: Made) -> PictureAnswer:
        """The answer for a picture; one that cannot be signed is withheld.

        Raises:
            SafetyFailure: it cannot be signed, and its policy says ``raise``.
        """
        started = perf_counter()
        report, png = made.report, None
        if made.image is not None:
            try:
                content = with_account(made.image, report, made.provenance)
                png = self._model.engine.file_of(content, report, job.policy)
            except SafetyFailure as problem:
                if job.policy.on_error == "raise":
                    raise
                logger.warning("picture of seed %s is withheld: its file could not be signed", report.seed)
                failure = Failure("file marks", __version__, str(problem))
                report = replace(report, action="block", errors=(*report.errors, failure), marks=())
                png = png_bytes(Image.new("RGB", made.image.size))
        timings = {
            "denoise": made.seconds,
            "review": _seconds_of_reviews(report),
            "encode": perf_counter() - started,
        }
        heat, curves = None, {}
        if job.explain:
            heat = heat_of(made.image, report, made.trace.heat[made.sample])
            curves = curves_of(made.trace, made.sample, report)
        account = account_of(report, made.trace, made.sample)
        return PictureAnswer(job.id, png, account, made.provenance, timings, heat, curves)

    def _with_unguided(self, job: PictureJob, answer: PictureAnswer, plain: Made | Failed) -> PictureAnswer:
        if isinstance(plain, Failed):
            policy = recording(job.policy)
            account = failure_account(policy, job.prompt, job.seed, plain.message)
            return replace(answer, unguided_account=account)
        shown = plain.image is not None and not plain.report.withheld
        picture = None
        if shown and plain.image is not None:
            content = with_account(plain.image, plain.report, plain.provenance)
            try:
                picture = self._model.engine.file_of(content, plain.report, job.policy)
            except SafetyFailure as problem:
                message = for_clients(str(problem), [job.prompt])
                account = failure_account(recording(job.policy), job.prompt, job.seed, message)
                return replace(answer, unguided_account=account)
        return replace(
            answer,
            timings={**answer.timings, "unguided": plain.seconds},
            unguided=picture,
            unguided_account=account_of(plain.report, plain.trace, plain.sample),
        )


def cancelled_answer(job: Job) -> Failed:
    """What is told of a job for which nobody waits."""
    return Failed(job.id, "cancelled", "nobody waits for it any more")


def _seconds_of_reviews(report: Report) -> float:
    reviews = [report.verdicts, *(attempt.verdicts for attempt in report.earlier)]
    return sum(verdict.seconds for verdicts in reviews for verdict in verdicts)


def _failed(jobs: Sequence[PictureJob], error: Exception) -> Failed:
    """What is told of an error to the client of a batch of one; the log gets the rest, once it is clear whose it is."""
    prompts = [job.prompt for job in jobs]
    if isinstance(error, ConfigurationError):
        return Failed(jobs[0].id, "invalid", for_clients(str(error), prompts))
    if len(jobs) > 1:
        return Failed(jobs[0].id, "failed", BROKEN)
    logger.error("a picture could not be made:\n%s", traceback_text(error, prompts))
    return Failed(jobs[0].id, "failed", RAISED if isinstance(error, SafetyFailure) else BROKEN)


def groups_of(jobs: Sequence[PictureJob]) -> list[list[int]]:
    """Which jobs, by position, can share an engine call.

    Policies of one call name one scheduler. A policy that says ``raise`` may end the whole call, so its jobs are alone.
    """
    groups: dict[Any, list[int]] = {}
    for number, job in enumerate(jobs):
        key = (job.shape, job.policy.scheduler, number if can_raise(job.policy) else None)
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def can_raise(policy: SafetyPolicy) -> bool:
    """True if the policy says ``raise`` for anything."""
    uses = (*policy.filters, *policy.prompt_filters)
    acting = {use.on_flag for use in policy.prompt_filters} | {use.on_flag.final.do for use in policy.filters}
    return policy.on_error == "raise" or "raise" in acting or any(use.on_error == "raise" for use in uses)
