"""Jobs carried out and recorded: nothing is answered before its record is written, and what is given up has one too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from sldcore.service.backend import Busy, Draining
from sldcore.service.http.errors import ServiceError, of_failure, too_many, unavailable
from sldcore.service.http.gateway import Facts, Gateway, log
from sldcore.service.jobs import Answer, Event, Failed, Job, PictureAnswer, PictureJob, Reason
from sldcore.service.ledger.records import Kind
from sldcore.service.rights.keys import Key


@dataclass(frozen=True, slots=True)
class Order:
    """The jobs of one request. ``partials`` counts the pictures of the way there that were sent, by job."""

    request: str
    key: Key
    jobs: Sequence[Job]
    partials: dict[str, int] = field(default_factory=dict)


async def carry_out(
    gateway: Gateway, order: Order, on_event: Callable[[Event], None] | None = None
) -> list[Answer]:
    """An answer for each job, recorded. Cancelled, it gives the jobs up and records that.

    Raises:
        ServiceError: 429 or 503: nothing was taken; 503: the records cannot be written, so that nothing may be answered.
    """
    try:
        answers = await gateway.backend.run(order.jobs, gateway.settings.limits.deadline, on_event)
    except Busy as busy:
        gateway.rates.give_back(order.key, len(order.jobs))
        raise too_many(str(busy), busy.retry_after, "queue_full") from None
    except Draining:
        gateway.rates.give_back(order.key, len(order.jobs))
        raise unavailable("the service is stopping; try again soon", "draining") from None
    except asyncio.CancelledError:
        await _record_given_up(gateway, order)
        raise
    except Exception:
        log.exception("request %s: the workers' side broke", order.request)
        answers = _all_failed(order, "failed", "something broke while this was made")
    await gateway.recorder.write(order.request, order.key, order.jobs, answers, order.partials)
    _count(gateway, order, answers)
    return answers


@asynccontextmanager
async def refusals_recorded(gateway: Gateway, kind: Kind, facts: Facts, key: Key) -> AsyncIterator[None]:
    """Record it if the block finds that the key may not have what it asks for; other errors are the log's."""
    try:
        yield
    except ServiceError as error:
        if error.status == HTTPStatus.FORBIDDEN:
            await gateway.recorder.refuse(kind, facts.id, key, error)
        raise


def require_some(answers: Sequence[Answer]) -> None:
    """Turn an answer in which every job failed into one error.

    Raises:
        ServiceError: That of the first job.
    """
    failures = [answer for answer in answers if isinstance(answer, Failed)]
    if len(failures) == len(answers):
        raise of_failure(failures[0])


async def _record_given_up(gateway: Gateway, order: Order) -> None:
    answers = _all_failed(order, "cancelled", "the client went away")
    _count(gateway, order, answers)
    try:
        await gateway.recorder.write(order.request, order.key, order.jobs, answers, order.partials)
    except ServiceError:
        log.warning("request %s was given up, and could not be recorded", order.request)


def _all_failed(order: Order, reason: Reason, message: str) -> list[Answer]:
    return [Failed(job.id, reason, message) for job in order.jobs]


def _count(gateway: Gateway, order: Order, answers: Sequence[Answer]) -> None:
    for job, answer in zip(order.jobs, answers, strict=True):
        account: Mapping[str, Any] = {} if isinstance(answer, Failed) else answer.account
        action = account.get("action") or ("given-up" if _given_up(answer) else "failed")
        policy = gateway.label(job.policy)
        if isinstance(job, PictureJob):
            withheld = isinstance(answer, PictureAnswer) and bool(account["withheld"])
            gateway.metrics.made(action, policy, withheld)
        else:
            gateway.metrics.reviewed(action, policy)


def _given_up(answer: Answer) -> bool:
    return isinstance(answer, Failed) and answer.reason == "cancelled"
