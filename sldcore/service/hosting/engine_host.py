"""The engines of one worker: jobs in, answers out, one batch after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from sldcore.errors import ConfigurationError
from sldcore.policy import SafetyPolicy
from sldcore.service.hosting.following import CancelledJobs, Emit
from sldcore.service.hosting.hosted_models import HostedModels
from sldcore.service.hosting.picturing import Picturing, cancelled_answer, groups_of
from sldcore.service.hosting.redaction import for_clients, prompts_left_out, traceback_text
from sldcore.service.hosting.reviewing import reviewed
from sldcore.service.jobs import Answer, Failed, Job, PictureJob, ReviewJob
from sldcore.service.settings import ModelSettings

logger = logging.getLogger("sldcore.service")


class EngineHost:
    """Makes pictures and reviews in this process.

    Models are loaded when they are first needed, or all by :meth:`warm_up`, and kept; so are detectors. Not for several
    threads at a time.

    Args:
        models: the operator's, by the names that jobs use.
    """

    def __init__(self, models: Mapping[str, ModelSettings]) -> None:
        self._models = HostedModels(models)

    def warm_up(self, policies: Sequence[SafetyPolicy]) -> None:
        """Load all models, and make what the policies name, so that no request waits for it.

        Raises:
            ConfigurationError: a model, or something that a policy names, cannot be had.
        """
        for model in self._models.all():
            model.warm_up(list(dict.fromkeys(policies)))

    def sizes(self) -> dict[str, list[tuple[int, int]]]:
        """Width and height that may be asked of each model, the default first; loads models that are not.

        Raises:
            ConfigurationError: a model cannot be had.
        """
        return {model.name: list(model.sizes) for model in self._models.all()}

    def run(self, jobs: Sequence[Job], emit: Emit, cancelled: CancelledJobs) -> list[Answer]:
        """One answer per job, in their order, whatever happens.

        Pictures of equal shape are made in one engine call. Jobs that were cancelled before it began are not made, and the call ends
        at the next step once all of its jobs are; other cancelled jobs are made with their batch.

        Args:
            jobs: pictures or reviews.
            emit: takes what happens on the way.
            cancelled: ids of jobs for which nobody waits any more; asked at every step.
        """
        answers: dict[int, Answer] = {}
        with prompts_left_out([_words_of(job) for job in jobs]):
            gone = set(cancelled())
            waiting = [number for number, job in enumerate(jobs) if job.id not in gone]
            for number in waiting:
                job = jobs[number]
                if isinstance(job, ReviewJob):
                    answers[number] = self._review(job, cancelled)
            pictures = [(number, job) for number in waiting if isinstance(job := jobs[number], PictureJob)]
            for group in groups_of([job for _, job in pictures]):
                chosen = [pictures[place] for place in group]
                made = self._pictures([job for _, job in chosen], emit, cancelled)
                answers.update(zip((number for number, _ in chosen), made, strict=True))
        return [answers.get(number, cancelled_answer(job)) for number, job in enumerate(jobs)]

    def _pictures(self, jobs: Sequence[PictureJob], emit: Emit, cancelled: CancelledJobs) -> list[Answer]:
        try:
            return Picturing(self._models.of(jobs[0].model), jobs, emit, cancelled).answers()
        except Exception as error:
            failed = _failed(jobs, error)
            return [Failed(job.id, failed.reason, failed.message) for job in jobs]

    def _review(self, job: ReviewJob, cancelled: CancelledJobs) -> Answer:
        try:
            if job.id in cancelled():
                return cancelled_answer(job)
            return reviewed(self._models.of(job.model), job)
        except Exception as error:
            return _failed([job], error)


def _failed(jobs: Sequence[Job], error: Exception) -> Failed:
    prompts = [_words_of(job) for job in jobs]
    if isinstance(error, ConfigurationError):
        return Failed(jobs[0].id, "invalid", for_clients(str(error), prompts))
    logger.error("a job could not be done:\n%s", traceback_text(error, prompts))
    return Failed(jobs[0].id, "failed", "something broke; the operator's log says what")


def _words_of(job: Job) -> str:
    """What a client wrote: the prompt, or the text to review."""
    return job.prompt if isinstance(job, PictureJob) else job.text or ""
