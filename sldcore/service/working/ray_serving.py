"""Ray Serve for the time of a service: joined or started, without any HTTP proxy, and left as it was found.

Serve restarts a replica that dies, but its replacement is no worker: it loads nothing, and its application is deleted. Who starts
workers again is the service (``seats``), so that it alone counts how often a job was tried.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import FrameType
from typing import Any, Final
from uuid import uuid4

from sldcore.errors import ConfigurationError
from sldcore.evaluation.ray_cluster import ray_cluster
from sldcore.policy import SafetyPolicy
from sldcore.service.settings import PREFIX, ModelSettings
from sldcore.service.working.workforce import Assignment, HostFactory

CALLS: Final = 100
"""Calls that a replica takes at the same time: its life, a batch, and short ones such as cancellations, which must never wait."""

HEALTH_TIMEOUT: Final = 60.0
"""Seconds in which a replica must answer Serve's questions; loading a model can keep Python busy for a while."""

_LOG = logging.getLogger("sldcore.service")
_MISSING: Final = "Ray Serve is not installed: pip install 'sldcore[ray,serve]'; without --ray, workers are processes of this machine"


class RayServe:
    """Applications of one replica each: one for each life of a worker.

    Args:
        ray: The module, connected.
        serve: The module, started.
        staff: All workers of the service.
        policies: What they are warmed up for.
        host_factory: Makes the host in a replica; the engine's by default.
    """

    def __init__(
        self,
        ray: Any,
        serve: Any,
        staff: Sequence[Assignment],
        policies: Sequence[SafetyPolicy],
        host_factory: HostFactory | None,
    ) -> None:
        self._ray, self._serve, self._staff = ray, serve, staff
        self._policies, self._host_factory = tuple(policies), host_factory
        self._on_loopback = all(node["NodeManagerAddress"] == "127.0.0.1" for node in ray.nodes())
        self._some_gpus = bool(ray.cluster_resources().get("GPU"))
        self._service, self._count, self._applications = uuid4().hex[:8], 0, set[str]()

    def new_application(self, assignment: Assignment) -> str:
        """A name that no other has; what is deployed under it is deleted at the end."""
        self._count += 1
        name = f"sld-{self._service}-{assignment.name.replace(':', '-')}-{self._count}"
        self._applications.add(name)
        return name

    def deploy(self, application: str, assignment: Assignment) -> Any:
        """A handle to the replica that Serve will start; it may not be there yet. Blocks for a moment."""
        from sldcore.service.working.ray_replica import Replica

        deployment = self._serve.deployment(
            Replica,
            name="worker",
            num_replicas=1,
            max_ongoing_requests=CALLS,
            max_constructor_retry_count=1,
            graceful_shutdown_timeout_s=0.0,  # what runs was waited for before
            health_check_timeout_s=HEALTH_TIMEOUT,
            ray_actor_options={
                "num_cpus": 1,
                "num_gpus": self.gpus(assignment),
                "runtime_env": self._environment(),
            },
            logging_config={"enable_access_log": False},
        ).bind(application, self._host_factory, _placed(assignment.models), self._policies, self._on_loopback)
        target = self._serve.RunTarget(target=deployment, name=application, route_prefix=None)
        return self._serve.run_many([target], wait_for_applications_running=False)[0]

    def delete(self, application: str) -> None:
        """Kill the replica and wait until nothing of its application is left. Blocks."""
        self._serve.delete(application)
        self._applications.discard(application)

    def delete_all(self) -> None:
        """Whatever of this service is left."""
        for application in list(self._applications):
            self.delete(application)

    def failure(self, application: str) -> str:
        """Why Serve cannot start the replica; nothing if it can, or if it waits for room. Blocks for a moment."""
        status = self._serve.status().applications.get(application)
        if status is None or status.status != "DEPLOY_FAILED":
            return ""
        messages = [each.message for each in status.deployments.values()]
        lines = "\n".join(filter(None, messages)).strip().splitlines() or [status.message]
        return lines[-1].strip()

    def room(self) -> str:
        """What the service asks for, and what the cluster has. Blocks for a moment."""
        has, free = self._ray.cluster_resources(), self._ray.available_resources()
        gpus = sum(map(self.gpus, self._staff))
        counts = " and ".join(
            f"{has.get(kind, 0):g} {kind}s ({free.get(kind, 0):g} free)" for kind in ("CPU", "GPU")
        )
        return f"{len(self._staff)} replicas of 1 CPU each, {gpus} of them with a GPU, were asked for, and the cluster has {counts}"

    def require_gpus(self) -> None:
        """For a cluster that will not grow.

        Raises:
            ConfigurationError: it has fewer GPUs than the workers need.
        """
        if sum(map(self.gpus, self._staff)) > self._ray.cluster_resources().get("GPU", 0):
            raise ConfigurationError(
                f"there is no room for the workers: {self.room()}; set fewer workers or another device"
            )

    def gpus(self, assignment: Assignment) -> int:
        """How many a worker asks for: one if its models are for CUDA, or for whatever is best and the cluster has some."""
        devices = {model.device for model in assignment.models.values()}
        return int(any(device.startswith("cuda") if device else self._some_gpus for device in devices))

    def _environment(self) -> dict[str, Any]:
        """The driver's, and which plugins are used."""
        environment = dict(self._ray.get_runtime_context().runtime_env or {})
        own = {
            name: value
            for name, value in os.environ.items()
            if name.startswith("SLD_") and not name.startswith(PREFIX)
        }
        return {**environment, "env_vars": {**environment.get("env_vars", {}), **own}}


@contextmanager
def ray_serve(
    staff: Sequence[Assignment],
    policies: Sequence[SafetyPolicy],
    address: str | None = None,
    host_factory: HostFactory | None = None,
) -> Iterator[RayServe]:
    """Ray Serve, on the cluster at the address or on a Ray of this machine only; its applications are deleted at the end.

    Raises:
        ConfigurationError: Ray or Serve is not installed, or there is no cluster.
        WorkerError: Ray does not start on this machine.
    """
    if find_spec("ray") is None:
        raise ConfigurationError(_MISSING)
    if address and address.startswith("ray://"):
        raise ConfigurationError(
            f"'{address}' is for Ray's client, which cannot call Ray Serve: run the service on a machine of the cluster, and give "
            "auto or HOST:PORT as address"
        )
    before = signal.getsignal(signal.SIGTERM)
    joined = bool(address and address != "local") or _connected()
    try:
        with ray_cluster(len(staff), address) as ray:
            _on_sigterm(_leave if before is signal.SIG_DFL else before)  # instead of Ray's
            serve = serve_module()
            found = _serves(ray)
            serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
            applications = RayServe(ray, serve, staff, policies, host_factory)
            if not joined:
                applications.require_gpus()
            try:
                yield applications
            finally:
                _on_sigterm(signal.SIG_IGN)  # it ends already
                if joined:  # else all of it ends with Ray
                    _leave_cluster(serve, applications, found)
    except SystemExit as end:
        raise SystemExit(
            0 if end.code == signal.SIGTERM else end.code
        ) from None  # Ray's handler, while it starts
    finally:
        _on_sigterm(before)


def _leave_cluster(serve: Any, applications: RayServe, found: bool) -> None:
    try:
        applications.delete_all()
        if not found and not serve.status().applications:
            serve.shutdown()
    except Exception as problem:
        _LOG.warning(f"something of the service may be left on the Ray cluster: {problem}")


def _on_sigterm(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    """End by taking down what was started, and not at once."""
    raise SystemExit(0)


def _connected() -> bool:
    """Whether the process is connected to a Ray already, which is then used."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def serve_module() -> Any:
    """``ray.serve``, quiet.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    from pydantic.warnings import PydanticDeprecatedSince20

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PydanticDeprecatedSince20)  # of Ray's own models
            serve = import_module("ray.serve")
    except ImportError as problem:
        raise ConfigurationError(f"{_MISSING} ({problem})") from None
    logging.getLogger("ray.serve").setLevel(
        logging.ERROR
    )  # it tells of each application, and twice of each end
    return serve


def _serves(ray: Any) -> bool:
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _placed(models: Mapping[str, ModelSettings]) -> dict[str, ModelSettings]:
    """With a replica's name for its device: Ray shows it one GPU, which is its first."""
    return {
        name: model.model_copy(update={"device": "cuda"})
        if (model.device or "").startswith("cuda")
        else model
        for name, model in models.items()
    }
