"""What happens around every request: its id, headers of caution, one line in the log, a count, and an end for what breaks."""

from __future__ import annotations

import time
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sldcore.service.http.errors import ServiceError
from sldcore.service.http.gateway import Facts, log
from sldcore.service.http.metrics import Metrics

UNMATCHED: Final = "unmatched"
"""What stands for addresses that do not exist: they are clients' own words."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"})
_CAUTION: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class Observing:
    """ASGI middleware. Prompts are logged only if the routes put them into the request's facts."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = scope["sld.facts"] = Facts()
        status = 0
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = facts.id
                for name, value in _CAUTION.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            with self._metrics.in_flight.track_inprogress():
                await self._app(scope, receive, noted)
        except Exception:
            log.exception("request %s broke", facts.id)
            if not status:
                error = ServiceError(500, f"something broke; the service's log has it as {facts.id}")
                await error.response(scope, receive, noted)
        finally:
            self._note(scope, facts, status, time.perf_counter() - began)

    def _note(self, scope: Scope, facts: Facts, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self._metrics.answered(method, route, status, seconds)
        log.info(
            "%s %s %s status=%d key=%s pictures=%d ms=%.0f%s",
            facts.id, method, route, status, facts.key, facts.pictures, seconds * 1000, facts.detail,
        )  # fmt: skip
