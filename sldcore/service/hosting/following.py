"""One engine call followed for the jobs that it serves: their progress, their pictures of the way, and their cancellation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from sldcore.filters.chain import Findings
from sldcore.service.hosting.hosted_engine import PipelineCall
from sldcore.service.hosting.previews import Previews
from sldcore.service.jobs import Event, PictureJob, Progress
from sldcore.types import Predictions, Step

logger = logging.getLogger("sldcore.service")

Emit = Callable[[Event], None]
CancelledJobs = Callable[[], Collection[str]]


class Cancelled(BaseException):
    """Nobody waits any more for what is being made.

    No ``Exception``: those of step hooks are failures of safety, and withhold pictures in place of ending the call.
    """


class Following:
    """The state of one engine call.

    Progress is told for the jobs whose pictures the present pipeline call makes: all of them in the first one, then those that a
    gate or a filter wants made again. ``attempt`` counts the pipeline calls that a job has been in, and its steps start anew
    with each.

    Args:
        jobs: in the order of the engine call's prompts.
        emit: takes progress.
        cancelled: the ids of jobs for which nobody waits.
        previews: makes pictures of the way; without it there are none.
        before: how many pipeline calls jobs, by id, have been in before.
    """

    def __init__(
        self,
        jobs: Sequence[PictureJob],
        emit: Emit,
        cancelled: CancelledJobs,
        previews: Previews | None = None,
        before: Counter[str] | None = None,
    ) -> None:
        self._jobs, self._emit, self._cancelled, self._previews = jobs, emit, cancelled, previews
        self._here: tuple[PictureJob, ...] = ()
        self.attempts: Counter[str] = Counter(before or {})

    def stop_if_cancelled(self) -> None:
        """End the engine call if nobody waits for any of its pictures.

        Raises:
            Cancelled: nobody does.
        """
        if {job.id for job in self._jobs} <= set(self._cancelled()):
            raise Cancelled

    def on_prompts(self, jobs: Sequence[int], findings: Sequence[Findings]) -> None:
        """Remember which prompts passed their filters."""
        if self._previews is not None:
            self._previews.on_prompts(jobs, findings)

    def begins(self, call: PipelineCall) -> None:
        """Begin to count the steps of some jobs."""
        self.stop_if_cancelled()
        self._here = tuple(self._jobs[number] for number in call.jobs)
        self.attempts.update(job.id for job in self._here)
        if self._previews is not None:
            self._previews.begins(call)

    def on_step(self, step: Step, predictions: Predictions) -> None:
        """Tell the step; nothing here waits for the device but pictures of the way that are due."""
        self.stop_if_cancelled()
        for job in self._here:
            told(self._emit, Progress(job.id, step.index + 1, step.total, self.attempts[job.id]))
        if self._previews is not None:
            self._previews.on_step(step, predictions)

    def ends(self) -> None:
        """Forget the pipeline call."""
        self._here = ()
        if self._previews is not None:
            self._previews.ends()


def told(emit: Emit, event: Event) -> None:
    """Pass an event on; who does not take it loses the event, and not the picture."""
    try:
        emit(event)
    except Exception as error:
        logger.warning("an event of a job was not taken: %s", type(error).__name__)
