"""What the HTTP side asks of whatever carries jobs out: a protocol, its errors, and its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sldcore.service.jobs import Answer, Event, Job


class Busy(Exception):
    """The queue is full: nothing of the request was taken. ``retry_after`` in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Draining(Exception):
    """The service is stopping and takes nothing more."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the workers. ``ready`` if at least one can take work."""

    ready: bool
    workers: int
    alive: int
    queued: int
    capacity: int
    running: int
    restarts: int = 0
    problems: tuple[str, ...] = ()
    batches: Mapping[int, int] = field(default_factory=dict)
    """How many batches there were of each size."""


class Backend(Protocol):
    """Carries out jobs. All methods belong to one event loop."""

    async def start(self) -> None:
        """Start the workers and wait until they are warm.

        Raises:
            ConfigurationError: a model or policy cannot be had.
        """
        ...

    async def run(
        self, jobs: Sequence[Job], deadline: float, on_event: Callable[[Event], None] | None = None
    ) -> list[Answer]:
        """Answers in the jobs' order, one for each whatever happens; ``deadline`` in seconds from now.

        All jobs of a call are taken or none. Cancelling the task gives its jobs up: what is queued is dropped, and what runs is
        stopped or thrown away.

        Raises:
            Busy: the queue has no room for them.
            Draining: the service is stopping.
        """
        ...

    async def drain(self, seconds: float) -> None:
        """Take nothing more, finish what was taken, and stop the workers; after ``seconds`` answer the rest with ``draining``."""
        ...

    def status(self) -> Status:
        """How it is doing."""
        ...
