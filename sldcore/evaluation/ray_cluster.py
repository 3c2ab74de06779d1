"""A Ray cluster for a run: one that is there already, or one of our own on this machine, for as long as the run takes.

Our own talks to nobody else: its ports are on the loopback interface, statistics are off, and what Ray would ask a cloud's metadata
service goes nowhere. It has a folder and a token of its own, so that several runs may start at the same time.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from socket import create_connection
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

from sldcore.errors import ConfigurationError
from sldcore.evaluation.workers import WorkerError

STATISTICS_OFF: Final = {"RAY_USAGE_STATS_ENABLED": "0"}

LOOPBACK: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"
}  # named after the systems on which it is the default; read when Ray is imported

PATIENCE: Final = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
}
"""How long Ray's processes wait for each other to start; Ray gives up after 30 or 60 s, which a busy machine may need."""

NO_METADATA: Final = {
    **dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"),
}
"""Ray's dashboard process asks for a cloud's metadata over plain HTTP even when statistics are off; nobody listens at this proxy."""

ANSWER: Final = 30.0
"""Seconds in which a cluster's address has to answer."""

STORE: Final = 512 * 2**20
"""Bytes of Ray's object store: pictures on their way to the driver. More is spilled into the folder."""


@contextmanager
def ray_cluster(actors: int, address: str | None = None) -> Iterator[Any]:
    """Ray, connected; disconnected again, and stopped if it was started here, whatever ends the block.

    A Ray that the caller has connected already is used as it is, and left so.

    Args:
        actors: How many are to run at the same time, where Ray is started here.
        address: Of a cluster; without one, Ray is started on this machine.

    Raises:
        ConfigurationError: Ray is not installed, or there is no cluster at the address.
        WorkerError: Ray does not start on this machine.
    """
    already = sys.modules.get("ray")
    if already is not None and already.is_initialized():
        yield already
    elif address and address != "local":
        _require_answer(address)
        with _environment(STATISTICS_OFF), _connected(address, {"runtime_env": _of_actors({})}) as ray:
            yield ray
    else:
        temporary = TemporaryDirectory(prefix="sld-ray-", dir=_parent(), ignore_cleanup_errors=True)
        with _environment(_of_our_own()) as before, temporary as folder:
            options = {"num_cpus": actors, "include_dashboard": False, "object_store_memory": STORE}
            with _connected(
                "local", {**options, "runtime_env": _of_actors(before), "_temp_dir": folder}
            ) as ray:
                yield ray


@contextmanager
def _connected(address: str, options: Mapping[str, Any]) -> Iterator[Any]:
    ray = _ray()
    handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own there
    try:
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
        except Exception as problem:
            if address == "local":
                raise WorkerError(f"Ray does not start on this machine: {problem}") from problem
            raise ConfigurationError(f"cannot join a Ray cluster at '{address}': {problem}") from problem
        yield ray
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _require_answer(address: str) -> None:
    """Whether somebody listens at ``host:port``; Ray would try for minutes. ``auto`` is left to Ray."""
    try:
        place = urlsplit(address if "://" in address else f"ray://{address}")
        if place.hostname and place.port:
            create_connection((place.hostname, place.port), timeout=ANSWER).close()
    except (OSError, ValueError) as problem:
        raise ConfigurationError(f"cannot join a Ray cluster at '{address}': {problem}") from None


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise ConfigurationError(
            "Ray is not installed: pip install 'sldcore[ray]'; --processes N spreads a run on one machine without it"
        ) from None


def _of_our_own() -> dict[str, str]:
    """The environment of a Ray that is started here; waiting times that the user has set are kept."""
    patience = {name: os.environ.get(name, value) for name, value in PATIENCE.items()}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()}
    return {**STATISTICS_OFF, **LOOPBACK, **patience, **NO_METADATA, **token}


@cache
def _token() -> str:
    """One per process, which reads it only once. Without, Ray writes one into the home folder, which two starts may garble."""
    return secrets.token_hex(32)


def _of_actors(proxies: Mapping[str, str | None]) -> dict[str, Any] | None:
    """What actors have in their environment: the driver's proxies, and as many threads.

    Pictures are the same to the last bit only with the same number of threads; Ray would choose one for each CPU of an actor.
    """
    variables = {name: proxies.get(name) or "" for name in NO_METADATA} if proxies else {}
    threads = os.environ.get("OMP_NUM_THREADS")
    variables |= {"OMP_NUM_THREADS": threads} if threads else {}
    return {"env_vars": variables} if variables else None


def _parent() -> str | None:
    """Where Ray's folder goes: a short path, because names of sockets may have about 100 characters."""
    return os.environ.get("RAY_TMPDIR") or ("/tmp" if os.name == "posix" else None)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[dict[str, str | None]]:
    """Set variables for a block, which is told what they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield before
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
