"""Spreading a run over a Ray cluster: actors hold a pipeline each, and this process writes what they make.

Actors need no shared disk: pictures come back to the driver. A dead actor's batch is given to a new one; results are the same
whoever makes them, and recorded by key. Needs the extra ``ray``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from sldcore.errors import ConfigurationError
from sldcore.evaluation.planning import Batch, Plan
from sldcore.evaluation.ray_cluster import ray_cluster
from sldcore.evaluation.run_folder import RunFolder
from sldcore.evaluation.workers import Progress, WorkerError, without_items

ATTEMPTS: Final = 3
"""How often a batch is given out before the run stops."""


def make_with_ray(
    folder: RunFolder,
    plan: Plan,
    batches: Sequence[Batch],
    actors: int,
    device: str | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Make batches with Ray actors.

    Args:
        folder: Where the driver writes.
        plan: The run.
        batches: What is to be made.
        actors: How many pipelines are loaded.
        device: As for ``load_pipeline``; an actor on CUDA asks Ray for one GPU.
        address: Of a cluster; without one, Ray is started on this machine and stopped again.
        progress: Told after every batch.

    Raises:
        ConfigurationError: Ray is not installed, or model or arguments cannot be used.
        WorkerError: a batch killed its actor several times, or Ray does not start.
    """
    if batches:
        count = min(actors, len(batches))
        with ray_cluster(count, address) as ray:
            _Driver(ray, folder, without_items(plan), batches, device, progress).run(count)


class _Driver:
    """Gives batches to actors, takes what they make, and replaces those that die."""

    def __init__(
        self,
        ray: Any,
        folder: RunFolder,
        plan: Plan,
        batches: Sequence[Batch],
        device: str | None,
        progress: Progress | None,
    ) -> None:
        self._ray, self._folder, self._plan, self._device, self._progress = (
            ray,
            folder,
            plan,
            device,
            progress,
        )
        self._waiting = deque((batch, 1) for batch in batches)
        self._total = sum(len(batch.members) for batch in batches)
        self._done = 0
        gpus = 1 if device is not None and device.startswith("cuda") else 0
        self._maker = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_Maker)
        self._running: dict[Any, tuple[Any, Batch, int]] = {}

    def run(self, actors: int) -> None:
        for _ in range(actors):
            self._give(self._new())
        while self._running:
            finished, _ = self._ray.wait(list(self._running), num_returns=1)
            for reference in finished:
                self._take(reference)

    def _new(self) -> Any:
        return self._maker.remote(self._plan, self._device)

    def _give(self, actor: Any) -> None:
        if self._waiting:
            batch, attempt = self._waiting.popleft()
            self._running[actor.make.remote(batch)] = (actor, batch, attempt)

    def _take(self, reference: Any) -> None:
        from sldcore.evaluation.generation import store

        actor, batch, attempt = self._running.pop(reference)
        errors = self._ray.exceptions
        try:
            made = self._ray.get(reference)
        except (errors.RayActorError, errors.OutOfMemoryError, errors.ObjectLostError) as died:
            if attempt >= ATTEMPTS:
                raise WorkerError(
                    f"batch {batch.number} killed its worker {ATTEMPTS} times ({died.__class__.__name__}). What was made is kept; "
                    "the same command goes on from there"
                ) from None
            self._waiting.appendleft((batch, attempt + 1))
            actor = self._new()
        except errors.RayTaskError as failed:
            if isinstance(failed.cause, ConfigurationError):
                raise ConfigurationError(str(failed.cause)) from None
            raise WorkerError(
                f"batch {batch.number} failed: {type(failed.cause).__name__}: {failed.cause}. What was made is kept"
            ) from failed
        except errors.RayError as failed:
            raise WorkerError(
                f"Ray lost batch {batch.number}: {type(failed).__name__}: {failed}. What was made is kept"
            ) from failed
        else:
            store(self._folder, "ray", made)
            self._done += len(batch.members)
            if self._progress is not None:
                self._progress(self._done, self._total)
        self._give(actor)


class _Maker:
    """The actor: one pipeline on one device."""

    def __init__(self, plan: Plan, device: str | None) -> None:
        self._plan, self._device = plan, device
        self._generator: Any = None

    def make(self, batch: Batch) -> Any:
        if self._generator is None:  # here, so that what goes wrong in loading is an answer, not a death
            from sldcore.evaluation.workers import generator_of, require_same_place

            require_same_place(self._plan, weights=True)
            self._generator = generator_of(self._plan, self._device)
        return self._generator.make(batch)
