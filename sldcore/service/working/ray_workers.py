"""Workers that are replicas of Ray Serve applications, on any machine of a Ray cluster: ``sld serve --ray``. Needs the extra ``ray``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final
from uuid import uuid4

from sldcore import __version__
from sldcore.errors import ConfigurationError
from sldcore.policy import SafetyPolicy
from sldcore.service.jobs import Answer, Job
from sldcore.service.settings import ServiceSettings
from sldcore.service.working.lives import LivingWorker
from sldcore.service.working.ray_replica import Broken, Bundle, FromReplica, Said
from sldcore.service.working.ray_serving import RayServe, ray_serve
from sldcore.service.working.supervising import START_LIMIT
from sldcore.service.working.worker import Alive, Done, Ready, Refused
from sldcore.service.working.workforce import (
    Assignment,
    Emit,
    HostFactory,
    Worker,
    WorkerFactory,
    WorkerLost,
    assignments,
)

ROOM_LIMIT: Final = 180.0
"""Seconds in which the cluster must find room for a replica; some clusters start machines for it."""

HEARD_EVERY: Final = 15.0
"""Seconds between words of the service to a replica; see ``ray_replica.ABANDONED``."""

_LOG = logging.getLogger("sldcore.service")


@contextmanager
def ray_workers(
    settings: ServiceSettings,
    policies: Sequence[SafetyPolicy],
    host_factory: HostFactory | None = None,
    room_limit: float = ROOM_LIMIT,
) -> Iterator[WorkerFactory]:
    """What makes a service's workers, while Ray Serve is there; no replica is left at the end.

    Args:
        settings: Which models, how many workers, and where the cluster is.
        policies: What they are warmed up for.
        host_factory: Makes the host in a replica; the engine's by default.
        room_limit: Seconds in which the cluster must find room for a replica.

    Raises:
        ConfigurationError: Ray is not installed, or there is no cluster.
        WorkerError: Ray does not start on this machine.
    """
    with ray_serve(assignments(settings), policies, settings.ray_address, host_factory) as applications:

        def make(assignment: Assignment) -> Worker:
            return RayWorker(assignment, applications, settings.limits.filter_grace, room_limit)

        yield make


class RayWorker(LivingWorker["_Life"]):
    """A ``Worker`` in a replica, with an application of its own for each time that it is started.

    Args:
        assignment: What it serves.
        applications: Where.
        grace: Seconds without a sign of life after which it counts as hung while it is busy, and is killed.
        room_limit: Seconds in which the cluster must find room for it.
        start_limit: Seconds that loading and warming up may take.
    """

    def __init__(
        self,
        assignment: Assignment,
        applications: RayServe,
        grace: float = 60.0,
        room_limit: float = ROOM_LIMIT,
        start_limit: float = START_LIMIT,
    ) -> None:
        self._assignment, self._applications = assignment, applications
        super().__init__(assignment.name, grace)
        self._room_limit, self._start_limit = room_limit, start_limit

    async def start(self) -> None:
        """As ``Worker.start``; a cluster without room for it is a ``ConfigurationError`` too."""
        if self._life is not None:
            self._life.end("was started again")
            await self._life.gone()
        life = self._life = _Life(self._assignment, self._applications)
        try:
            await life.begin(self._room_limit)
            async with asyncio.timeout(self._start_limit):
                self.sizes = await life.ready
        except TimeoutError:
            life.end(f"was not ready after {self._start_limit:.0f} s")
            await life.gone()
            raise WorkerLost(life.how) from None
        except BaseException:
            life.end("was not wanted any more")
            await life.gone()
            raise

    def cancel(self, ids: Collection[str]) -> None:
        """As ``Worker.cancel``."""
        if self._life is not None:
            self._life.cancel(ids)

    async def stop(self, seconds: float) -> None:
        """As ``Worker.stop``."""
        life = self._life
        if life is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await life.idle.wait()
        life.end("was stopped")
        await life.gone()


class _Life:
    """One replica, from the deployment of its application to its deletion."""

    def __init__(self, assignment: Assignment, applications: RayServe) -> None:
        loop = asyncio.get_running_loop()
        self._assignment, self._applications = assignment, applications
        self._application = applications.new_application(assignment)
        self._id, self._number = uuid4().hex, 0
        self._handle: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._deployed = loop.create_task(
            asyncio.to_thread(applications.deploy, self._application, assignment)
        )
        self._deleted: asyncio.Task[None] | None = None
        self._there = asyncio.Event()
        self.ready: asyncio.Future[Mapping[str, Sequence[tuple[int, int]]]] = loop.create_future()
        self.warm, self.how = False, ""
        self.over, self.idle = asyncio.Event(), asyncio.Event()
        self.idle.set()

    async def begin(self, room_limit: float) -> None:
        """Wait until the replica is there; ``ready`` is when it is warm.

        Raises:
            ConfigurationError: the cluster has no room for it, or it cannot be made there.
            WorkerLost: it ended.
        """
        try:
            self._handle = await asyncio.shield(self._deployed)
        except Exception as cause:
            raise WorkerLost(f"worker {self._assignment.name} cannot be deployed: {cause}") from cause
        self._spawn(self._listen())
        loop = asyncio.get_running_loop()
        until = loop.time() + room_limit
        while not (self._there.is_set() or self.over.is_set()):
            if problem := await asyncio.to_thread(self._applications.failure, self._application):
                raise ConfigurationError(f"worker {self._assignment.name} cannot be made: {problem}")
            if loop.time() > until:
                room = await asyncio.to_thread(self._applications.room)
                raise ConfigurationError(
                    f"the Ray cluster had no room for worker {self._assignment.name} within {room_limit:.0f} s: {room}; set fewer "
                    "workers or another device, or add machines"
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._there.wait(), 0.5)
        self._spawn(self._speak())

    async def run(self, batch: Sequence[Job], emit: Emit, grace: float) -> Sequence[Answer]:
        """As ``Worker.run``, while it is warm."""
        self._number += 1
        self.idle.clear()
        work = asyncio.create_task(self._carry_out(batch, emit, grace))
        over = asyncio.create_task(self.over.wait())
        try:
            await asyncio.wait([work, over], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise WorkerLost(self.how)
        finally:
            self.idle.set()
            for task in (work, over):
                task.cancel()
            await asyncio.gather(work, over, return_exceptions=True)

    def cancel(self, ids: Collection[str]) -> None:
        """In the batch that runs."""
        if self._handle is not None and not self.idle.is_set():
            call = self._handle.cancel.remote(self._id, self._number, frozenset(ids))
            self._spawn(_unless_it_is_gone(call))

    def end(self, why: str) -> None:
        """It is over, whether it knows or not; the replica is killed."""
        if self.over.is_set():
            return
        self.how = f"worker {self._assignment.name} {why}"
        self.over.set()
        if not self.ready.done():
            self.ready.set_exception(WorkerLost(self.how))
            self.ready.exception()  # asked for here, should nobody else
        for task in self._tasks:
            task.cancel()
        self._deleted = asyncio.create_task(self._delete())

    async def gone(self) -> None:
        """Wait until nothing is left of it, after its end."""
        if self._deleted is not None:
            await asyncio.shield(self._deleted)

    async def _listen(self) -> None:
        try:
            async for message in self._stream("live", self._id, __version__):
                self._receive(message)
        except Exception as problem:
            self.end(f"ended ({type(problem).__name__})")

    def _receive(self, message: FromReplica) -> None:
        self._there.set()
        match message:
            case Ready(sizes):
                self.warm = True
                if not self.ready.done():
                    self.ready.set_result(sizes)
            case Refused(text):
                if not self.ready.done():
                    self.ready.set_exception(ConfigurationError(text))
            case Said(level, text):
                _LOG.log(level, "worker %s: %s", self._assignment.name, text)
            case Broken():
                self._broke(message)

    async def _carry_out(self, batch: Sequence[Job], emit: Emit, grace: float) -> Sequence[Answer]:
        messages = self._stream("run", self._id, self._number, tuple(batch))
        try:
            while True:
                match await asyncio.wait_for(anext(messages), grace):
                    case Done(answers):
                        return answers
                    case Broken() as broken:
                        self._broke(broken)
                    case Refused(text):
                        self.end(f"refused a batch: {text}")
                    case Alive() | Ready() | Said():
                        continue
                    case event:
                        emit(event)
        except TimeoutError:
            self.end(f"hung for {grace:g} s and was killed")
        except Exception as problem:
            self.end(f"ended ({type(problem).__name__})")
        raise WorkerLost(self.how)

    async def _stream(self, method: str, *arguments: Any) -> AsyncIterator[FromReplica]:
        stream = getattr(self._handle.options(stream=True), method).remote(*arguments)
        bundle: Bundle
        async for bundle in stream:
            for message in bundle:
                yield message

    def _broke(self, broken: Broken) -> None:
        _LOG.error("worker %s broke:\n%s", self._assignment.name, broken.text)
        self.end(f"broke with a {broken.kind}")

    async def _speak(self) -> None:
        while not self.over.is_set():
            await _unless_it_is_gone(self._handle.hear.remote(self._id))
            await asyncio.sleep(HEARD_EVERY)

    async def _delete(self) -> None:
        with suppress(Exception):
            await self._deployed
        try:
            await asyncio.to_thread(self._applications.delete, self._application)
        except Exception as problem:
            _LOG.warning(f"what was worker {self._assignment.name} may still be there: {problem}")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _unless_it_is_gone(call: Any) -> None:
    with suppress(Exception):  # which is noticed where its life is listened to
        await call
