"""Records on their way to the ledger, and what to do while it cannot take them: nothing is answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from sldcore.service.errors import ServiceError, unavailable
from sldcore.service.jobs import Answer, Failed, Job, PictureAnswer, PictureJob, ReviewAnswer
from sldcore.service.keys import Key
from sldcore.service.ledger import Ledger
from sldcore.service.ledger.records import (
    Kind,
    Wording,
    picture_record,
    refused_record,
    review_record,
    start_record,
)
from sldcore.service.metrics import Metrics

log: Final = logging.getLogger("sldcore.service")


class Recorder:
    """Writes records in threads, since that waits for the disk. ``problem`` says what kept the last ones from being written."""

    def __init__(self, ledger: Ledger, wording: Wording, metrics: Metrics) -> None:
        self.ledger = ledger
        self.problem: str | None = None
        self._wording = wording
        self._metrics = metrics

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
        records = [
            self._record(job, answer, partials.get(job.id, 0), request=request, key=key.id, index=index)
            for index, (job, answer) in enumerate(zip(jobs, answers, strict=True))
        ]
        await self._append(records)

    async def try_again(self) -> None:
        """If records could not be written, write one that they go on: else who gets no requests would never find out."""
        if self.problem is not None:
            with suppress(ServiceError):
                await self._append([start_record()])

    async def refuse(self, kind: Kind, request: str, key: Key, error: ServiceError) -> None:
        """Record that a key asked for what it may not have. Nothing leaves, so that this may fail."""
        code = error.code or "forbidden"
        record = refused_record(kind, code, error.message, self._wording, request=request, key=key.id)
        try:
            await self._append([record])
        except ServiceError:
            log.warning("request %s was refused, and could not be recorded", request)

    async def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        try:
            await asyncio.to_thread(self.ledger.append, records)
        except Exception as problem:  # whatever it is: without a record nothing leaves
            log.exception("the audit trail cannot be written")
            self._metrics.audit_failures.inc(len(records))
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
