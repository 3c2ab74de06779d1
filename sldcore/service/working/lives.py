"""What workers share that live several times, one life after the other: a process, or a replica elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from sldcore.service.jobs import Answer, Job
from sldcore.service.working.workforce import Emit, WorkerLost


class Life(Protocol):
    """From a start to the end that follows: ``warm`` when it takes batches, ``over`` when it has ended."""

    warm: bool
    over: asyncio.Event

    async def run(self, batch: Sequence[Job], emit: Emit, grace: float) -> Sequence[Answer]:
        """Carry out a batch; ``grace`` seconds without a sign of life are its end."""
        ...


L = TypeVar("L", bound=Life)


class LivingWorker(Generic[L]):
    """The part of a ``Worker`` that asks its present life; how one begins and ends is its own.

    Args:
        name: What messages call it.
        grace: Seconds without a sign of life after which it counts as hung while it is busy, and is killed.
    """

    def __init__(self, name: str, grace: float) -> None:
        self._name, self._grace = name, grace
        self._life: L | None = None
        self.sizes: Mapping[str, Sequence[tuple[int, int]]] = {}

    @property
    def alive(self) -> bool:
        """It is warm and takes a batch."""
        return self._life is not None and self._life.warm and not self._life.over.is_set()

    async def run(self, batch: Sequence[Job], emit: Emit) -> Sequence[Answer]:
        """As ``Worker.run``."""
        life = self._life
        if life is None or not self.alive:
            raise WorkerLost(f"worker {self._name} is not running")
        return await life.run(batch, emit, self._grace)

    async def ended(self) -> None:
        """As ``Worker.ended``."""
        if self._life is not None:
            await self._life.over.wait()
