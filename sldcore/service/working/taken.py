"""Requests that were taken and are not answered yet: every way to end one leads through here, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from sldcore.service.jobs import Answer, Event, Job, Partial
from sldcore.service.working.batching import Waiting

_LOG = logging.getLogger("sldcore.service")

OnEvent = Callable[[Event], None]


class Request:
    """Jobs that one caller waits for. ``answers`` is done when each has one."""

    def __init__(
        self, jobs: Sequence[Job], on_event: OnEvent | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._ids = [job.id for job in jobs]
        self._on_event = on_event
        self._answered: dict[str, Answer] = {}
        self.answers: asyncio.Future[list[Answer]] = loop.create_future()

    def answer(self, answer: Answer) -> None:
        """Note a job's answer; the last one ends the request."""
        self._answered[answer.job] = answer
        if len(self._answered) == len(self._ids) and not self.answers.done():
            self.answers.set_result([self._answered[id] for id in self._ids])

    def tell(self, event: Event) -> None:
        """Pass an event on; a listener that fails hears nothing more, and its request goes on."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            self._on_event = None
            _LOG.exception("what listens to a request's events failed; it gets its answer without them")


class Taken:
    """A job on its way, waiting or running. ``tries`` counts the workers that had it."""

    def __init__(self, waiting: Waiting, request: Request) -> None:
        self.waiting, self.request = waiting, request
        self.tries = 0
        self._shown = 0

    @property
    def id(self) -> str:
        """The job's."""
        return self.waiting.job.id

    def tell(self, event: Event) -> None:
        """Pass an event on; a second try does not show again what the first one showed."""
        if isinstance(event, Partial):
            if event.index < self._shown:
                return
            self._shown = event.index + 1
        self.request.tell(event)
