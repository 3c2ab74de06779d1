"""A worker process seen from the service's event loop: started, given batches, watched, and replaced when it ended or hung.

The loop never waits for the process: a thread reads what it sends, and another writes, because a worker that hangs does not read.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, cast

from sldcore.errors import ConfigurationError
from sldcore.policy import SafetyPolicy
from sldcore.service.jobs import Answer, Job
from sldcore.service.working.lives import LivingWorker
from sldcore.service.working.worker import (
    Alive,
    Cancel,
    Done,
    FromWorker,
    Ready,
    Refused,
    Run,
    Stop,
    ToWorker,
    work,
)
from sldcore.service.working.workforce import Assignment, Emit, HostFactory, WorkerLost

START_LIMIT: Final = 1800.0
"""Seconds that loading and warming up may take."""

_LOG = logging.getLogger("sldcore.service")


class WorkerProcess(LivingWorker["_Life"]):
    """A ``Worker`` in a process of this machine.

    Args:
        assignment: What it serves.
        policies: What it is warmed up for.
        host_factory: Makes the host in the process; the engine's by default.
        grace: Seconds without a sign of life after which it counts as hung while it is busy, and is killed.
        start_limit: Seconds that a start may take.
    """

    def __init__(
        self,
        assignment: Assignment,
        policies: Sequence[SafetyPolicy],
        host_factory: HostFactory | None = None,
        grace: float = 60.0,
        start_limit: float = START_LIMIT,
    ) -> None:
        self._arguments = (host_factory, dict(assignment.models), tuple(policies), assignment.number)
        super().__init__(assignment.name, grace)
        self._start_limit = start_limit

    @property
    def pid(self) -> int | None:
        """Of the process that there is now, or was last."""
        return self._life.process.pid if self._life is not None else None

    async def start(self) -> None:
        """As ``Worker.start``."""
        life = self._life = _Life(self._name, self._arguments)
        try:
            async with asyncio.timeout(self._start_limit):
                await life.ready
        except TimeoutError:
            life.kill()
            await life.over.wait()
            raise WorkerLost(f"worker {self._name} was not ready after {self._start_limit:.0f} s") from None
        except BaseException:
            life.kill()
            raise
        self.sizes = life.sizes

    def cancel(self, ids: Collection[str]) -> None:
        """As ``Worker.cancel``."""
        if self._life is not None:
            self._life.send(Cancel(frozenset(ids)))

    async def stop(self, seconds: float) -> None:
        """As ``Worker.stop``; one that is not warm yet is ended at once."""
        life = self._life
        if life is None:
            return
        if life.warm:
            life.send(Stop())
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await life.over.wait()
        life.kill()
        await life.over.wait()


class _Life:
    """One process, from its start to its end."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        context = get_context("spawn")  # threads and CUDA do not survive a fork
        self._loop = asyncio.get_running_loop()
        self._name, self._why = name, ""
        self.warm = False
        self.sizes: Mapping[str, Sequence[tuple[int, int]]] = {}
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.over = asyncio.Event()
        self._batch: asyncio.Future[Sequence[Answer]] | None = None
        self._emit: Emit | None = None
        self._seen = 0.0
        self._outbox: SimpleQueue[ToWorker | None] = SimpleQueue()
        self._connection, theirs = context.Pipe()
        self.process = context.Process(
            target=work, args=(theirs, *arguments), name=f"sld-{name}", daemon=True
        )
        self.process.start()
        theirs.close()
        atexit.register(self.process.kill)  # before multiprocessing asks it to end, which it does not heed
        self._writer = Thread(target=self._write, name=f"to {name}", daemon=True)
        self._writer.start()
        Thread(target=self._read, name=f"from {name}", daemon=True).start()

    def send(self, message: ToWorker) -> None:
        self._outbox.put(message)

    def kill(self, why: str = "") -> None:
        self._why = self._why or why
        self.process.kill()

    async def run(self, batch: Sequence[Job], emit: Emit, grace: float) -> Sequence[Answer]:
        self._batch, self._emit = self._loop.create_future(), emit
        self._seen = self._loop.time()
        self.send(Run(tuple(batch)))
        watch = self._loop.create_task(self._watch(grace))
        try:
            return await self._batch
        finally:
            watch.cancel()
            self._batch = self._emit = None

    async def _watch(self, grace: float) -> None:
        while (left := self._seen + grace - self._loop.time()) > 0:
            await asyncio.sleep(left)
        self.kill(f"hung for {grace:g} s and was killed")

    def _receive(self, message: FromWorker) -> None:
        self._seen = self._loop.time()
        match message:
            case Ready(sizes):
                self.sizes = sizes
                self.warm = True
                self._settle(self.ready, None)
            case Refused(text):
                self._fail(self.ready, ConfigurationError(text))
            case Done(answers):
                self._settle(self._batch, answers)
            case Alive():
                return
            case event:
                if self._emit is not None:
                    self._emit(event)

    def _end(self) -> None:
        atexit.unregister(self.process.kill)
        self.over.set()
        lost = WorkerLost(f"worker {self._name} {self._why or _how(self.process.exitcode)}")
        self._fail(self.ready, lost)
        self._fail(self._batch, lost)

    def _settle(self, future: asyncio.Future[Any] | None, value: Any) -> None:
        if future is not None and not future.done():
            future.set_result(value)

    def _fail(self, future: asyncio.Future[Any] | None, problem: Exception) -> None:
        if future is not None and not future.done():
            future.set_exception(problem)

    def _read(self) -> None:
        try:
            while True:
                self._tell(self._receive, cast(FromWorker, self._connection.recv()))
        except (EOFError, OSError):
            self._bury()
        except Exception:
            _LOG.exception("worker %s sent something that cannot be read", self._name)
            self._bury()

    def _bury(self) -> None:
        self.process.kill()
        self.process.join()
        self._outbox.put(None)
        self._writer.join()
        self._connection.close()
        self._tell(self._end)

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:
                return  # it ended, which the reader sees too
            except Exception:
                _LOG.exception("a batch for worker %s cannot be sent", self._name)
                self.process.kill()
                return

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody is left to tell
            self._loop.call_soon_threadsafe(callback, *arguments)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code}"
    return f"ended with exit code {code}"
