"""Answers as server-sent events: pictures as they come, and an end of the work when the client goes away.

Partial pictures are reviewed before they come here, and have no record of their own: the picture's record, also that of one
which was given up, says how many of them were on their way to the client. While records cannot be written, none is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sldcore.service.http.answers import (
    completed_event,
    failed_event,
    partial_event,
    progress_event,
    server_sent,
)
from sldcore.service.http.carrying_out import Order, carry_out, require_some
from sldcore.service.http.errors import ServiceError
from sldcore.service.http.gateway import Gateway, log
from sldcore.service.http.watching import ClientGone, ended, unless_gone
from sldcore.service.jobs import Answer, Event, Failed, Partial, PictureAnswer, PictureJob

SILENCE: Final = 15.0
"""Seconds after which a comment is sent, so that nothing on the way takes the connection for dead."""

Events = AsyncGenerator[bytes, None]


async def events_of(gateway: Gateway, order: Order, progress: bool) -> Events:
    """The events of an order, as bytes; closing it gives the order up.

    Raises:
        ServiceError: Nothing was taken, there are no records, or every job failed.
    """
    waiting: asyncio.Queue[Event | None] = asyncio.Queue()
    places = {job.id: (index, job) for index, job in enumerate(order.jobs) if isinstance(job, PictureJob)}

    def on_event(event: Event) -> None:
        if _passes(gateway, order, event, progress):
            waiting.put_nowait(event)

    work = asyncio.ensure_future(carry_out(gateway, order, on_event))
    work.add_done_callback(lambda _: waiting.put_nowait(None))
    try:
        while True:
            try:
                event = await asyncio.wait_for(waiting.get(), SILENCE)
            except TimeoutError:
                yield b": still at work\n\n"
                continue
            if event is None:
                break
            yield _on_the_way(places, event)
        for content in _at_last(order, await work):
            yield content
    finally:
        await ended(work)


def _passes(gateway: Gateway, order: Order, event: Event, progress: bool) -> bool:
    """Whether the client is to see this; partial pictures that it is to see are counted, for the record."""
    if not isinstance(event, Partial):
        return progress
    if gateway.recorder.problem is not None:
        return False
    order.partials[event.job] = order.partials.get(event.job, 0) + 1
    return True


def _on_the_way(places: Mapping[str, tuple[int, PictureJob]], event: Event) -> bytes:
    index, job = places[event.job]
    if isinstance(event, Partial):
        return server_sent(*partial_event(index, job, event))
    return server_sent(*progress_event(index, event))


def _at_last(order: Order, answers: list[Answer]) -> list[bytes]:
    """Failures last: OpenAI's client reads nothing after one."""
    require_some(answers)
    done = list(enumerate(zip(order.jobs, answers, strict=True)))
    completed = [
        completed_event(index, job, answer, order.key.operator)
        for index, (job, answer) in done
        if isinstance(job, PictureJob) and isinstance(answer, PictureAnswer)
    ]
    failed = [failed_event(index, answer) for index, (_, answer) in done if isinstance(answer, Failed)]
    return [server_sent(*event) for event in completed + failed]


class EventStream(Response):
    """An answer of events. The first is there already, so that what goes wrong before it has an HTTP status."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: Events) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they or the client are gone."""
        try:
            await unless_gone(receive, self._send(send))
        except (ClientGone, OSError):
            log.info("a client went away from its stream")
        finally:
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send(_part(self._first))
        try:
            async for content in self._events:
                await send(_part(content))
        except ServiceError as error:
            await send(_part(server_sent("error", {"type": "error", **error.body})))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(content: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": True}
