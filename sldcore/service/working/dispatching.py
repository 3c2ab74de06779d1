"""Carrying requests out with workers: a queue, batches, deadlines, and what happens when a worker dies.

A job is given to a worker at most twice. When a worker ends or hangs, the jobs of its batch go back to their place in the queue, each
to be run alone: one that kills workers takes no other with it twice. A job whose second worker ends too is answered ``lost``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from sldcore.errors import ConfigurationError
from sldcore.policy import SafetyPolicy
from sldcore.service.backend import Busy, Draining, Status
from sldcore.service.jobs import Answer, Event, Failed, Job, Reason
from sldcore.service.settings import ServiceSettings
from sldcore.service.working.batching import JobQueue
from sldcore.service.working.seats import Restarts, Seat
from sldcore.service.working.taken import OnEvent, Request, Taken
from sldcore.service.working.workforce import (
    Assignment,
    HostFactory,
    Worker,
    WorkerFactory,
    WorkerLost,
    assignments,
)

_LOG = logging.getLogger("sldcore.service")

TRIES: Final = 2
"""How many workers a job may have, one after the other."""

_STOP_SECONDS: Final = 5.0
_SMOOTHING: Final = 0.3  # weight of the last batch in the measured seconds per job

_MESSAGES: Final[dict[Reason, str]] = {
    "deadline": "there was no answer within the time that a request may take",
    "draining": "the service is stopping",
    "lost": "the worker that made this ended unexpectedly, and so did a second one",
    "failed": "no worker that could make this can be started at the moment",
    "invalid": "no worker has this model",
    "cancelled": "it was given up",
}


class Dispatcher:
    """A ``Backend`` of worker processes, or of other workers.

    Args:
        settings: Models, workers, limits.
        policies: What the workers are warmed up for.
        host_factory: Makes the host in a worker process; the engine's by default.
        worker_factory: Makes workers that are no processes of this machine.
        restarts: How workers are started again.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        policies: Sequence[SafetyPolicy],
        host_factory: HostFactory | None = None,
        worker_factory: WorkerFactory | None = None,
        restarts: Restarts | None = None,
    ) -> None:
        limits = settings.limits
        make = worker_factory or _processes(policies, host_factory, limits.filter_grace)
        self._seats = [Seat(each, make(each)) for each in assignments(settings)]
        self._restarts = restarts or Restarts()
        self._queue = JobQueue(limits.queue, limits.batch, limits.batch_wait, limits.client_queue)
        self._taken: dict[str, Taken] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self._seconds_per_job = 0.0
        self._batches: Counter[int] = Counter()

    async def start(self) -> None:
        """As ``Backend.start``; nothing is left running if it fails."""
        try:
            async with asyncio.TaskGroup() as starting:
                for seat in self._seats:
                    starting.create_task(seat.worker.start())
        except BaseExceptionGroup as group:
            await self._stop_workers()
            problem = group.exceptions[0]
            if isinstance(problem, WorkerLost):
                raise ConfigurationError(f"{problem} while it started; its output says why") from None
            raise problem from None
        except BaseException:
            await self._stop_workers()
            raise
        self._keepers = [
            asyncio.create_task(seat.keep(self._restarts, self._staff_changed)) for seat in self._seats
        ]

    async def run(
        self, jobs: Sequence[Job], deadline: float, on_event: OnEvent | None = None
    ) -> list[Answer]:
        """As ``Backend.run``.

        Raises:
            ValueError: an id is that of another job that is on its way.
        """
        if self._draining:
            raise Draining("the service is stopping")
        if not jobs:
            return []
        if len({job.id for job in jobs} - self._taken.keys()) < len(jobs):
            raise ValueError("jobs on their way need ids of their own")
        loop = asyncio.get_running_loop()
        request = Request(jobs, on_event, loop)
        refused = {job.id: reason for job in jobs if (reason := self._refusal(job))}
        waiting = self._queue.push(
            [job for job in jobs if job.id not in refused], loop.time(), loop.time() + deadline
        )
        if waiting is None:
            raise Busy(self._retry_after())
        for id, reason in refused.items():
            request.answer(Failed(id, reason, _MESSAGES[reason]))
        taken = [Taken(each, request) for each in waiting]
        self._take(taken)
        timer = loop.call_later(max(deadline, 0.0), self._give_up, taken, "deadline")
        self._pump()
        try:
            return await request.answers
        finally:
            timer.cancel()
            self._give_up(taken, "cancelled")

    async def drain(self, seconds: float) -> None:
        """As ``Backend.drain``."""
        self._draining = True
        self._queue.close()
        self._pump()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()
        finally:
            self._give_up(list(self._taken.values()), "draining")
        await self._stop_workers()

    def sizes(self) -> dict[str, list[tuple[int, int]]]:
        """Width and height that may be asked of each model, the default first; known once the workers were warm."""
        return {name: list(sizes) for seat in self._seats for name, sizes in seat.worker.sizes.items()}

    def status(self) -> Status:
        """As ``Backend.status``; ``running`` counts what workers are busy with, given up or not."""
        alive = sum(seat.worker.alive for seat in self._seats)
        return Status(
            ready=alive > 0 and not self._draining,
            workers=len(self._seats),
            alive=alive,
            queued=len(self._queue),
            capacity=self._queue.capacity,
            running=sum(len(seat.running) for seat in self._seats),
            restarts=sum(seat.restarts for seat in self._seats),
            problems=tuple(seat.problem for seat in self._seats if seat.problem),
            batches=dict(self._batches),
        )

    def _pump(self) -> None:
        """Give every idle worker a batch, if there is one for it, and come back when one has waited long enough."""
        loop = asyncio.get_running_loop()
        for seat in self._seats:
            if seat.idle and (batch := self._queue.take(loop.time(), seat.assignment.models.keys())):
                seat.running = [self._taken[waiting.job.id] for waiting in batch]
                self._batches[len(batch)] += 1
                task = loop.create_task(self._carry_out(seat, seat.running))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if any(seat.idle for seat in self._seats) and (when := self._queue.wakes(loop.time())) is not None:
            self._timer = loop.call_at(when, self._pump)

    async def _carry_out(self, seat: Seat, batch: Sequence[Taken]) -> None:
        loop = asyncio.get_running_loop()
        running = {taken.id: taken for taken in batch}
        for taken in batch:
            taken.tries += 1

        def tell(event: Event) -> None:
            if (taken := running.get(event.job)) is not None and self._open(taken):
                taken.tell(event)

        began = loop.time()
        try:
            answers = await seat.worker.run([taken.waiting.job for taken in batch], tell)
        except WorkerLost as lost:
            _LOG.warning(f"{lost}, with {len(batch)} jobs")
            self._lost(batch)
        except Exception:
            _LOG.exception("worker %s failed with %d jobs", seat.assignment.name, len(batch))
            self._settle(batch, ())
        else:
            seat.failures = 0
            self._measure((loop.time() - began) / len(batch))
            self._queue.finished([taken.waiting for taken in batch], loop.time())
            self._settle(batch, answers)
        seat.running = ()
        self._pump()

    def _settle(self, batch: Sequence[Taken], answers: Sequence[Answer]) -> None:
        by_id = {answer.job: answer for answer in answers}
        for taken in filter(self._open, batch):
            self._close(taken)
            missing = Failed(taken.id, "failed", "the worker gave no answer")
            taken.request.answer(by_id.get(taken.id, missing))

    def _lost(self, batch: Sequence[Taken]) -> None:
        """Once more, each alone; or never again."""
        left = list(filter(self._open, batch))
        self._give_up([taken for taken in left if taken.tries >= TRIES], "lost")
        self._queue.give_back([taken.waiting for taken in left if taken.tries < TRIES])

    def _give_up(self, some: Sequence[Taken], reason: Reason) -> None:
        """Answer what has no answer yet, and see that no worker goes on with it."""
        given_up = list(filter(self._open, some))
        for taken in given_up:
            self._close(taken)
            self._queue.remove(taken.id)
            taken.request.answer(Failed(taken.id, reason, _MESSAGES[reason]))
        for seat in self._seats:
            if ids := [taken.id for taken in seat.running if taken in given_up]:
                seat.worker.cancel(ids)

    def _take(self, some: Sequence[Taken]) -> None:
        self._taken |= {taken.id: taken for taken in some}
        if self._taken:
            self._empty.clear()

    def _close(self, taken: Taken) -> None:
        del self._taken[taken.id]
        if not self._taken:
            self._empty.set()

    def _open(self, taken: Taken) -> bool:
        return self._taken.get(taken.id) is taken

    def _refusal(self, job: Job) -> Reason | None:
        """Why no worker can make this, now."""
        seats = [seat for seat in self._seats if job.model in seat.assignment.models]
        if not seats:
            return "invalid"
        return "failed" if all(seat.problem for seat in seats) else None

    def _measure(self, seconds: float) -> None:
        last = self._seconds_per_job or seconds
        self._seconds_per_job = last + _SMOOTHING * (seconds - last)

    def _retry_after(self) -> float:
        """Seconds until what waits now will be done, at the speed measured; at least 1."""
        alive = sum(seat.worker.alive for seat in self._seats)
        return max(1.0, self._seconds_per_job * len(self._queue) / max(alive, 1))

    def _staff_changed(self) -> None:
        """A worker is there again, or cannot be started: what nobody could make is refused, and the rest goes on."""
        unservable = self._queue.waiting(lambda job: self._refusal(job) is not None)
        self._give_up([self._taken[id] for id in unservable], "failed")
        self._pump()

    async def _stop_workers(self) -> None:
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(seat.worker.stop(_STOP_SECONDS) for seat in self._seats))
        await asyncio.gather(*self._tasks)
        if self._timer is not None:
            self._timer.cancel()


def _processes(
    policies: Sequence[SafetyPolicy], host_factory: HostFactory | None, grace: float
) -> WorkerFactory:
    def make(assignment: Assignment) -> Worker:
        from sldcore.service.working.supervising import WorkerProcess

        return WorkerProcess(assignment, policies, host_factory, grace)

    return make
