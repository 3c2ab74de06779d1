"""A worker's place in the service: it stays when the worker ends, and the next one takes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sldcore.service.working.taken import Taken
from sldcore.service.working.workforce import Assignment, Worker

_LOG = logging.getLogger("sldcore.service")


@dataclass(frozen=True, slots=True)
class Restarts:
    """How a worker that ended is started again: at once, then after ``first`` seconds, twice as many each time, at most ``most``.

    What waits for it is refused after ``tries`` starts in a row that failed; it is tried further.
    """

    first: float = 1.0
    most: float = 30.0
    tries: int = 3

    def delay(self, failures: int) -> float:
        """Seconds before the next start, after so many ends and failed starts without a batch in between."""
        return 0.0 if failures <= 1 else min(self.first * 2.0 ** min(failures - 2, 30), self.most)


@dataclass(eq=False, slots=True)
class Seat:
    """A worker, what it runs, and what is wrong with it.

    ``failures`` counts ends and failed starts since its last batch, ``restarts`` the times that it was started again.
    """

    assignment: Assignment
    worker: Worker
    running: Sequence[Taken] = ()
    failures: int = 0
    restarts: int = 0
    problem: str = ""

    @property
    def idle(self) -> bool:
        """It takes a batch now."""
        return self.worker.alive and not self.running

    async def keep(self, restarts: Restarts, changed: Callable[[], None]) -> None:
        """Start the worker again whenever it ends, and tell when it is there again or can be counted on no more."""
        while True:
            await self.worker.ended()
            self.failures += 1
            await self._start_again(restarts, changed)
            self.restarts += 1
            self.problem = ""
            changed()

    async def _start_again(self, restarts: Restarts, changed: Callable[[], None]) -> None:
        failed = 0
        while not self.worker.alive:
            await asyncio.sleep(restarts.delay(self.failures))
            try:
                await self.worker.start()
            except Exception as problem:
                _LOG.warning(f"worker {self.assignment.name} cannot be started again: {problem}")
                self.failures, failed = self.failures + 1, failed + 1
                if failed >= restarts.tries:
                    self.problem = f"worker {self.assignment.name} cannot be started: {problem}"
                    changed()
