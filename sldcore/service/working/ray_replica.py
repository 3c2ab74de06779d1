"""A worker in a replica of a Ray Serve application: the engine host that a worker process has, behind streamed calls.

A replica belongs to the first service that calls :meth:`Replica.live`, under the name that this gives its life, and answers to no other
name: a call that Ray sends on to a replacement, because the replica it was for has died, is refused there, and no job runs unasked.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from time import monotonic
from typing import Final

from sldcore import __version__
from sldcore.errors import ConfigurationError
from sldcore.policy import SafetyPolicy
from sldcore.service.jobs import Job
from sldcore.service.settings import ModelSettings
from sldcore.service.working.worker import BEAT, Alive, Done, FromWorker, Ready, Refused
from sldcore.service.working.workforce import EngineHost, HostFactory

ABANDONED: Final = 90.0
"""Seconds without a word from the service after which a replica has its application deleted, lest it keep a GPU for nobody."""

_LOG = logging.getLogger("sldcore.service")


@dataclass(frozen=True, slots=True)
class Said:
    """From the replica: what it wrote into its log, for the operator's."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Broken:
    """From the replica: something that should not have raised did; the traceback is for the operator's log."""

    kind: str
    text: str


FromReplica = FromWorker | Said | Broken
Bundle = tuple[FromReplica, ...]
"""What there was to say since the last one: an item of a stream costs about a millisecond."""


class Replica:
    """One engine host, whose work is done in one thread, so that the replica can be talked to meanwhile.

    Args:
        application: Its name, by which it can be deleted.
        host_factory: Makes the host; the engine's by default.
        models: What to load.
        policies: What to be ready for.
        on_loopback: The cluster is on this machine's loopback interface, and the replica must listen there only.
    """

    def __init__(
        self,
        application: str,
        host_factory: HostFactory | None,
        models: Mapping[str, ModelSettings],
        policies: Sequence[SafetyPolicy],
        on_loopback: bool = False,
    ) -> None:
        if on_loopback:
            _listen_on_loopback()
        self._application = application
        self._parts = (host_factory, models, policies)
        self._host: EngineHost | None = None
        self._thread = ThreadPoolExecutor(1, "engine")
        self._life = ""
        self._heard = monotonic()
        self._number = 0
        self._cancelled: dict[int, frozenset[str]] = {}

    async def live(self, life: str, version: str) -> AsyncIterator[Bundle]:
        """A sign of life at once, ``Ready`` or ``Refused`` when it is warm, and its log for as long as it lives.

        Args:
            life: The only name to which it answers from now on.
            version: Of the service's sldcore.
        """
        if self._life:
            raise RuntimeError("this replica has a service already")
        self._life, self._heard = life, monotonic()
        outbox = _Outbox()
        outbox.put(Alive())
        with _log_to(outbox):
            self._thread.submit(self._work, outbox, lambda: self._warm_up(version))
            async for bundle in outbox.bundles():
                yield bundle

    async def run(self, life: str, number: int, jobs: Sequence[Job]) -> AsyncIterator[Bundle]:
        """What happens in a batch, and at the end ``Done``.

        Args:
            life: The replica's.
            number: The batch's, higher than any before.
            jobs: As for ``EngineHost.run``.
        """
        if life != self._life or number <= self._number:
            raise RuntimeError("this batch was given to another replica, or twice")
        self._number, self._heard = number, monotonic()
        self._cancelled = {each: ids for each, ids in self._cancelled.items() if each >= number}
        outbox = _Outbox()
        self._thread.submit(self._work, outbox, lambda: self._carry_out(number, jobs, outbox))
        async for bundle in outbox.bundles():
            yield bundle
            if any(isinstance(message, Done) for message in bundle):
                return

    async def cancel(self, life: str, number: int, ids: Collection[str]) -> None:
        """Nobody waits any more for these jobs of a batch, which may be yet to come: calls overtake each other."""
        if life == self._life and number >= self._number:
            self._cancelled[number] = self._cancelled.get(number, frozenset()) | frozenset(ids)

    async def hear(self, life: str) -> None:
        """The service is there."""
        if life == self._life:
            self._heard = monotonic()

    async def check_health(self) -> None:
        """Asked by Ray Serve from time to time: the replica sees whether it is still needed."""
        if monotonic() - self._heard > ABANDONED:
            _LOG.warning("no service has been heard for %.0f s", ABANDONED)
            await asyncio.to_thread(delete_application, self._application)

    def _warm_up(self, version: str) -> Ready:
        if version != __version__:
            raise ConfigurationError(
                f"a machine of the Ray cluster has sldcore {__version__}, and the service {version}; install the same everywhere"
            )
        factory, models, policies = self._parts
        host = (factory or _engine_host)(models)
        host.warm_up(policies)
        self._host = host
        return Ready(host.sizes())

    def _carry_out(self, number: int, jobs: Sequence[Job], outbox: _Outbox) -> Done:
        if self._host is None:
            raise RuntimeError("a batch came before the replica was warm")

        def cancelled() -> Collection[str]:
            outbox.beat()
            return self._cancelled.get(number, frozenset())

        return Done(tuple(self._host.run(jobs, outbox.put, cancelled)))

    def _work(self, outbox: _Outbox, task: Callable[[], Ready | Done]) -> None:
        try:
            outbox.put(task())
        except ConfigurationError as problem:
            outbox.put(Refused(str(problem)))
        except Exception as problem:
            outbox.put(Broken(type(problem).__name__, traceback.format_exc()))


def delete_application(name: str) -> None:
    """Have Ray Serve delete an application, which may be the caller's own."""
    from ray import serve

    serve.delete(name, _blocking=False)


def _listen_on_loopback() -> None:
    """Bind gRPC servers of this process to the loopback interface.

    Serve opens one in each replica after this, on all interfaces, for calls between applications, which nobody makes here.
    """
    server = import_module("grpc.aio._server").Server
    for name in ("add_insecure_port", "add_secure_port"):
        setattr(server, name, _bound_to_loopback(getattr(server, name)))


def _bound_to_loopback(add_port: Callable[..., int]) -> Callable[..., int]:
    def add(self: object, address: str, *credentials: object) -> int:
        return add_port(self, f"127.0.0.1:{address.rpartition(':')[2]}", *credentials)

    return add


class _Outbox:
    """What the engine's thread has to say, in the order in which it says it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[FromReplica] = asyncio.Queue()
        self._sent = 0.0

    def put(self, message: FromReplica) -> None:
        """From any thread."""
        self._sent = monotonic()
        self._loop.call_soon_threadsafe(self._messages.put_nowait, message)

    def beat(self) -> None:
        """A sign of life, unless there was one just now."""
        if monotonic() - self._sent >= BEAT:
            self.put(Alive())

    async def bundles(self) -> AsyncIterator[Bundle]:
        """All that is said, for ever."""
        while True:
            bundle = [await self._messages.get()]
            while not self._messages.empty():
                bundle.append(self._messages.get_nowait())
            yield tuple(bundle)


class _ToService(logging.Handler):
    def __init__(self, outbox: _Outbox) -> None:
        super().__init__(logging.INFO)
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        self._outbox.put(Said(record.levelno, self.format(record)))


@contextmanager
def _log_to(outbox: _Outbox) -> Iterator[None]:
    handler = _ToService(outbox)
    logger = logging.getLogger("sldcore")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _engine_host(models: Mapping[str, ModelSettings]) -> EngineHost:
    from sldcore.service.hosting.engine_host import EngineHost as Engine

    return Engine(models)
