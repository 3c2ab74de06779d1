"""The running service: everything made from the settings, a server around it, and an orderly end on SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from types import FrameType
from typing import Any, Final

import uvicorn

from sldcore.errors import ConfigurationError
from sldcore.policy import SafetyPolicy
from sldcore.service.backend import Backend
from sldcore.service.http.app import create_app
from sldcore.service.ledger import open_ledger
from sldcore.service.rights.access import Access
from sldcore.service.rights.keys import Keys
from sldcore.service.settings import ServiceSettings
from sldcore.service.working.dispatching import Dispatcher
from sldcore.service.working.workforce import WorkerFactory

LAST_ANSWERS: Final = 5.0
"""Seconds that answers may still take to be sent after the workers have stopped."""

_BACKLOG: Final = 2048
_LOG = logging.getLogger("sldcore.service")


def serve(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or Ctrl-C, and return when everything that was taken is answered.

    Raises:
        ConfigurationError: keys, policies, models, the audit or the address cannot be had; nothing was answered.
    """
    signal.signal(signal.SIGTERM, _leave)  # at any time, also while models load
    _log_to_stderr()
    with closing(_bound(settings.host, settings.port)) as listening:
        keys = None if settings.keys is None else Keys.load(settings.keys)
        access = Access(settings, keys)
        policies = list(access.policies.values())
        with _workers(settings, policies) as worker_factory:
            dispatcher = Dispatcher(settings, policies, worker_factory=worker_factory)
            ledger = open_ledger(settings.audit)
            app = create_app(settings, dispatcher, ledger, access, keys, sizes=dispatcher.sizes)
            with suppress(KeyboardInterrupt):
                asyncio.run(_serve(app, dispatcher, settings, listening))


def _leave(number: int, frame: FrameType | None) -> None:
    """End in order: whatever was begun is left on the way out. uvicorn raises the signal again when it has finished."""
    raise SystemExit(0)


async def _serve(app: Any, backend: Backend, settings: ServiceSettings, listening: socket.socket) -> None:
    config = uvicorn.Config(
        app,
        lifespan="off",  # begun here: an error is then one, and not a traceback in a log
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        ws="none",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=int(settings.limits.drain + LAST_ANSWERS),
    )
    async with app.router.lifespan_context(app):
        listening.listen(_BACKLOG)
        host, port = listening.getsockname()[:2]
        print(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)
        await _Server(config, backend, settings.limits.drain).serve(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that lets the workers finish what was taken while it waits for its open answers."""

    def __init__(self, config: uvicorn.Config, backend: Backend, seconds: float) -> None:
        super().__init__(config)
        self._backend, self._seconds = backend, seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no connection any more, and wait for the answers of those there are."""
        _LOG.info("stopping: finishing what was taken")
        draining = asyncio.create_task(self._backend.drain(self._seconds))
        await super().shutdown(sockets)
        await draining


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address, before anything slow begins.

    Raises:
        ConfigurationError: there is no such address, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as problem:
        raise ConfigurationError(
            f"cannot listen on {host}, port {port}: {problem.strerror or problem}; choose another with --host and --port"
        ) from None
    return bound


def _workers(
    settings: ServiceSettings, policies: Sequence[SafetyPolicy]
) -> AbstractContextManager[WorkerFactory | None]:
    """What makes workers: Ray's replicas if the settings say so, else nothing, for processes of this machine."""
    if not settings.ray:
        return nullcontext()
    from sldcore.service.working.ray_workers import ray_workers

    return ray_workers(settings, policies)


def _log_to_stderr() -> None:
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        logging.getLogger("httpx").setLevel(logging.WARNING)
