"""What a worker is to the dispatcher, whether it is a process of this machine or a replica elsewhere, and which workers there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sldcore.errors import SLDError
from sldcore.policy import SafetyPolicy
from sldcore.service.jobs import Answer, Event, Job
from sldcore.service.settings import ModelSettings, ServiceSettings

Emit = Callable[[Event], None]


class EngineHost(Protocol):
    """What carries jobs out inside a worker, synchronously; ``sldcore.service.hosting.engine_host.EngineHost`` with real models."""

    def warm_up(self, policies: Sequence[SafetyPolicy]) -> None:
        """Load the models and whatever the policies need.

        Raises:
            ConfigurationError: something cannot be had.
        """
        ...

    def sizes(self) -> Mapping[str, Sequence[tuple[int, int]]]:
        """Width and height that may be asked of each model, the default first."""
        ...

    def run(
        self, jobs: Sequence[Job], emit: Emit, cancelled: Callable[[], Collection[str]]
    ) -> Sequence[Answer]:
        """An answer to each job. ``cancelled`` gives the ids that nobody waits for any more.

        Each call of ``emit`` and ``cancelled`` is a sign of life; ask at least once a step and between filters.
        """
        ...


HostFactory = Callable[[Mapping[str, ModelSettings]], EngineHost]
"""Makes a worker's host from the models it serves; a function or class that can be pickled."""


class WorkerLost(SLDError, RuntimeError):
    """A worker ended, was killed, or hung; the message says which and how."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A worker's part: the models that it serves, all on one device, and its ``number`` among the workers of that device."""

    name: str
    number: int
    models: Mapping[str, ModelSettings]


class Worker(Protocol):
    """One worker, which can be started again after it ended. All methods belong to one event loop."""

    @property
    def alive(self) -> bool:
        """It is warm and takes a batch."""
        ...

    @property
    def sizes(self) -> Mapping[str, Sequence[tuple[int, int]]]:
        """Of its models, once it was warm."""
        ...

    async def start(self) -> None:
        """Start it and wait until it is warm.

        Raises:
            ConfigurationError: a model or policy cannot be had.
            WorkerLost: it ended before it was warm.
        """
        ...

    async def run(self, batch: Sequence[Job], emit: Emit) -> Sequence[Answer]:
        """Carry out one batch at a time; ``emit`` is called on the loop.

        Raises:
            WorkerLost: it ended or hung on the way; nothing is known of any job.
        """
        ...

    def cancel(self, ids: Collection[str]) -> None:
        """These jobs of the running batch are given up; the batch ends as soon as nothing else is in it, or later."""
        ...

    async def ended(self) -> None:
        """Wait until it has ended, for whatever reason."""
        ...

    async def stop(self, seconds: float) -> None:
        """End it, by force after some seconds; it is not running afterwards."""
        ...


WorkerFactory = Callable[[Assignment], Worker]


def assignments(settings: ServiceSettings) -> list[Assignment]:
    """The workers of a service: for each device ``workers`` of them, each with all models of that device."""
    devices: dict[str | None, dict[str, Any]] = {}
    for name, model in settings.models.items():
        devices.setdefault(model.device, {})[name] = model
    return [
        Assignment(f"{device or 'worker'}-{number + 1}", number, models)
        for device, models in devices.items()
        for number in range(settings.workers)
    ]
