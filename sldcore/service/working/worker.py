"""A worker process: one engine host, which carries out batch after batch.

The parent decides when it ends: SIGINT and SIGTERM, which terminals and service managers send to whole groups of processes, do nothing
here. If the parent is gone, so is the worker, at once and whatever it does.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import Final

from sldcore.errors import ConfigurationError
from sldcore.policy import SafetyPolicy
from sldcore.service.jobs import Answer, Event, Job
from sldcore.service.settings import ModelSettings
from sldcore.service.working.workforce import EngineHost, HostFactory

BEAT: Final = 0.5
"""Seconds between signs of life, at least."""


@dataclass(frozen=True, slots=True)
class Run:
    """To the worker: carry these out."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the worker: nobody waits for these any more."""

    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stop:
    """To the worker: end, after what runs."""


@dataclass(frozen=True, slots=True)
class Ready:
    """From the worker: it is warm, and its models make pictures of these sizes."""

    sizes: Mapping[str, Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Refused:
    """From the worker: its models or policies cannot be had."""

    message: str


@dataclass(frozen=True, slots=True)
class Alive:
    """From the worker: the batch goes on."""


@dataclass(frozen=True, slots=True)
class Done:
    """From the worker: the batch's answers."""

    answers: tuple[Answer, ...]


ToWorker = Run | Cancel | Stop
FromWorker = Ready | Refused | Alive | Done | Event


def work(
    connection: Connection,
    host_factory: HostFactory | None,
    models: Mapping[str, ModelSettings],
    policies: Sequence[SafetyPolicy],
    number: int,
) -> None:
    """What the process does from start to end.

    Args:
        connection: To the parent, both ways.
        host_factory: Makes the host; the engine's by default.
        models: What to load.
        policies: What to be ready for.
        number: Among the workers of this device: CUDA devices are dealt out in turn.
    """
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    inbox = _Inbox(connection)
    outbox = _Outbox(connection)
    try:
        host = (host_factory or _engine_host)(_placed(models, number))
        host.warm_up(policies)
        sizes = host.sizes()
    except ConfigurationError as problem:
        outbox.send(Refused(str(problem)))
        return

    def cancelled() -> Collection[str]:
        outbox.beat()
        return inbox.cancelled

    outbox.send(Ready(sizes))
    while (jobs := inbox.next()) is not None:
        outbox.send(Done(tuple(host.run(jobs, outbox.send, cancelled))))


class _Inbox:
    """What the parent sends, read beside the work so that cancellations arrive while a batch runs."""

    def __init__(self, connection: Connection) -> None:
        self.cancelled: frozenset[str] = frozenset()
        self._ids: frozenset[str] = frozenset()
        self._connection = connection
        self._batches: SimpleQueue[tuple[Job, ...] | None] = SimpleQueue()
        Thread(target=self._read, name="inbox", daemon=True).start()

    def next(self) -> tuple[Job, ...] | None:
        """Wait for a batch; None is the end."""
        return self._batches.get()

    def _read(self) -> None:
        try:
            while True:
                self._sort(self._connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone: nobody is left to ask for anything, not even for this batch
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _sort(self, message: ToWorker) -> None:
        match message:
            case Run(jobs):
                self._ids, self.cancelled = frozenset(job.id for job in jobs), frozenset()
                self._batches.put(jobs)
            case Cancel(ids):
                self.cancelled |= ids & self._ids
            case Stop():
                self._batches.put(None)


class _Outbox:
    """What goes to the parent, from whichever thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock, self._sent = connection, Lock(), 0.0

    def send(self, message: FromWorker) -> None:
        with self._lock:
            self._connection.send(message)
            self._sent = monotonic()

    def beat(self) -> None:
        """A sign of life, unless there was one just now."""
        if monotonic() - self._sent >= BEAT:
            self.send(Alive())


def _engine_host(models: Mapping[str, ModelSettings]) -> EngineHost:
    from sldcore.service.hosting.engine_host import EngineHost as Engine

    return Engine(models)


def _placed(models: Mapping[str, ModelSettings], number: int) -> Mapping[str, ModelSettings]:
    if number == 0:  # the device as it is named, which is the first of its kind
        return models
    from sldcore.evaluation.workers import device_for

    return {
        name: model.model_copy(update={"device": device_for(model.device, number)})
        for name, model in models.items()
    }
