"""Workers without a process, moved by hand: a test sees each batch and says how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fake_hosts import png_of, settings_for

from sldcore.service.jobs import Answer, Failed, Job, PictureAnswer, PictureJob, ReviewAnswer
from sldcore.service.working.dispatching import Dispatcher
from sldcore.service.working.seats import Restarts
from sldcore.service.working.workforce import Assignment, Emit, WorkerLost


class Batch:
    """A batch that a worker has; ``emit`` is the service's."""

    def __init__(self, jobs: Sequence[Job], emit: Emit) -> None:
        self.jobs, self.emit = jobs, emit
        self.end: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()

    @property
    def ids(self) -> list[str]:
        return [job.id for job in self.jobs]

    def finish(self) -> None:
        self.end.set_result([answer_to(job) for job in self.jobs])


class HandWorker:
    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.sizes: Mapping[str, Sequence[tuple[int, int]]] = {}
        self.batches: asyncio.Queue[Batch] = asyncio.Queue()
        self.cancelled: list[str] = []
        self.refusing: Exception | None = None
        self.starts = 0
        self._over: asyncio.Event | None = None
        self._batch: Batch | None = None

    @property
    def alive(self) -> bool:
        return self._over is not None and not self._over.is_set()

    async def start(self) -> None:
        await asyncio.sleep(0)
        self.starts += 1
        if self.refusing is not None:
            raise self.refusing
        self.sizes = {name: [(64, 64)] for name in self.assignment.models}
        self._over = asyncio.Event()

    async def run(self, batch: Sequence[Job], emit: Emit) -> Sequence[Answer]:
        self._batch = Batch(batch, emit)
        self.batches.put_nowait(self._batch)
        try:
            return await self._batch.end
        finally:
            self._batch = None

    def cancel(self, ids: Collection[str]) -> None:
        self.cancelled += ids

    async def ended(self) -> None:
        if self._over is not None:
            await self._over.wait()

    async def stop(self, seconds: float) -> None:
        self.die()

    def die(self) -> None:
        """End, with whatever runs."""
        if self._over is not None:
            self._over.set()
        if self._batch is not None and not self._batch.end.done():
            self._batch.end.set_exception(WorkerLost("worker was killed by hand"))


def answer_to(job: Job) -> Answer:
    if isinstance(job, PictureJob):
        return PictureAnswer(job.id, png_of(job), {})
    return ReviewAnswer(job.id, {"text": job.text})


FAST = Restarts(first=0.001, most=0.01, tries=2)


class Service:
    """A dispatcher and its workers."""

    def __init__(self, **settings: Any) -> None:
        self.workers: list[HandWorker] = []
        self.dispatcher = Dispatcher(
            settings_for(Path("nowhere"), **settings), (), worker_factory=self._worker, restarts=FAST
        )

    def _worker(self, assignment: Assignment) -> HandWorker:
        self.workers.append(HandWorker(assignment))
        return self.workers[-1]

    async def batch(self, number: int = 0) -> Batch:
        """The next batch that a worker gets."""
        return await asyncio.wait_for(self.workers[number].batches.get(), 30)

    def ask(self, *jobs: Any, deadline: float = 30, on_event: Any = None) -> asyncio.Task[list[Answer]]:
        return asyncio.create_task(self.dispatcher.run(jobs, deadline, on_event))


@asynccontextmanager
async def service(**settings: Any) -> AsyncIterator[Service]:
    made = Service(**settings)
    await made.dispatcher.start()
    yield made
    await made.dispatcher.drain(0)
    status = made.dispatcher.status()
    assert (status.queued, status.running, status.alive) == (0, 0, 0)
    assert not made.dispatcher._taken


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def reasons(answers: list[Answer]) -> list[str]:
    return [answer.reason if isinstance(answer, Failed) else "made" for answer in answers]


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)
