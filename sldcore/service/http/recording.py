"""Records on their way to the ledger, and what to do while it cannot take them: nothing is answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from sldcore.service.http.errors import ServiceError, unavailable
from sldcore.service.http.metrics import Metrics
from sldcore.service.jobs import Answer, Failed, Job, PictureAnswer, PictureJob, ReviewAnswer
from sldcore.service.ledger import Ledger
from sldcore.service.ledger.records import (
    Kind,
    Wording,
    picture_record,
    refused_record,
    review_record,
    start_record,
)
from sldcore.service.rights.keys import Key

log: Final = logging.getLogger("sldcore.service")

Records = Sequence[Mapping[str, Any]]


class Recorder:
    """Makes and writes records, one batch after the other. ``problem`` says what kept the last ones from being written.

    That waits for the disk, so it has a thread, and one of its own: what else the service does in threads, such as decoding
    clients' pictures, must not keep answers waiting.
    """

    def __init__(self, ledger: Ledger, wording: Wording, metrics: Metrics) -> None:
        self.ledger = ledger
        self.problem: str | None = None
        self._wording = wording
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._under_way: set[asyncio.Task[None]] = set()

    async def write(
        self,
        request: str,
        key: Key,
        jobs: Sequence[Job],
        answers: Sequence[Answer],
        partials: Mapping[str, int],
    ) -> None:
        """Record what became of a request's jobs; ``partials`` says how many pictures of the way there were sent, by job.

        Raises:
            ServiceError: 503: they are not recorded, so that the answers must not leave.
        """

        def made() -> Records:
            return [
                self._record(job, answer, partials.get(job.id, 0), request=request, key=key.id, index=index)
                for index, (job, answer) in enumerate(zip(jobs, answers, strict=True))
            ]

        await self._append(made, len(jobs))

    async def try_again(self) -> None:
        """If records could not be written, write one that they go on: else who gets no requests would never find out."""
        if self.problem is not None:
            with suppress(ServiceError):
                await self._append(lambda: [start_record()], 1)

    async def refuse(self, kind: Kind, request: str, key: Key, error: ServiceError) -> None:
        """Record that a key asked for what it may not have. Nothing leaves, so that this may fail."""
        code = error.code or "forbidden"
        record = refused_record(kind, code, error.message, self._wording, request=request, key=key.id)
        try:
            await self._append(lambda: [record], 1)
        except ServiceError:
            log.warning("request %s was refused, and could not be recorded", request)

    async def settled(self) -> None:
        """Wait for records that are being written, also those for which nobody waits any more."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _append(self, made: Callable[[], Records], count: int) -> None:
        """Write what ``made`` gives. It is written also if whoever waits for it is cancelled: the work was done."""
        task = asyncio.ensure_future(self._written(made, count))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.shield(task)

    async def _written(self, made: Callable[[], Records], count: int) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, lambda: self.ledger.append(made()))
        except Exception as problem:  # whatever it is: without a record nothing leaves
            log.exception("the audit trail cannot be written")
            self._metrics.audit_failures.inc(count)
            self.problem = f"the audit trail cannot be written ({type(problem).__name__})"
            message = "the audit trail cannot be written, and nothing is answered without a record"
            raise unavailable(message, "audit_unavailable") from None
        self.problem = None

    def _record(self, job: Job, answer: Answer, partials: int, **where: Any) -> dict[str, Any]:
        if isinstance(job, PictureJob):
            assert isinstance(answer, PictureAnswer | Failed), "a picture's answer"
            return picture_record(job, answer, self._wording, partials=partials, **where)
        assert isinstance(answer, ReviewAnswer | Failed), "a review's answer"
        return review_record(job, answer, self._wording, **where)
