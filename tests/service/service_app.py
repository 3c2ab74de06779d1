"""An app around the fake backend, with keys, and a ledger in memory that can be made to fail."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fake_backend import FakeBackend
from fastapi import FastAPI

from sldcore.errors import SafetyFailure
from sldcore.service.http.app import create_app
from sldcore.service.ledger import Head, Wanted
from sldcore.service.rights.keys import Key, KeyLimits, Keys, hash_of
from sldcore.service.settings import ServiceSettings

SIZES = {"playground": [(64, 64), (128, 64)], "small": [(32, 32)]}

TOKENS = {name: f"sld-{name}" for name in ("user", "operator", "limited", "own")}


def bearer(name: str = "user") -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


def _key(name: str, **more: Any) -> Key:
    return Key(id=name, sha256=hash_of(TOKENS[name]), created=datetime.now(UTC), **more)


def made_keys() -> Keys:
    return Keys(
        [
            _key("user"),
            _key("operator", operator=True),
            _key(
                "limited",
                policies=("medium",),
                models=("small",),
                limits=KeyLimits(requests_per_minute=2, pictures=2, steps=20, prompt_characters=20),
            ),
            _key("own", inline=True, floor="strong"),
        ]
    )


def made_settings(**more: Any) -> ServiceSettings:
    return ServiceSettings(
        **{
            "models": {"playground": {"steps": 10}, "small": {"min_steps": 2}},
            "policies": {"medium": "medium", "strong": "strong"},
            "limits": {"prompt_characters": 500, "review_inputs": 4, "review_pixels": 10_000},
            **more,
        }
    )


@dataclass
class MemoryLedger:
    """Records in a list; ``broken`` as a full disk."""

    records: list[dict[str, Any]] = field(default_factory=list)
    broken: bool = False
    closed: bool = False

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self.broken:
            raise SafetyFailure("cannot write the ledger /secret/place: no space left")
        begin = len(self.records)
        self.records += [
            {**record, "seq": begin + index, "hash": "00"} for index, record in enumerate(records)
        ]

    def page(
        self, limit: int, before: int | None = None, wanted: Wanted | None = None
    ) -> list[Mapping[str, Any]]:
        if self.broken:
            raise SafetyFailure("cannot read the ledger")
        found = [each for each in reversed(self.records) if before is None or each["seq"] < before]
        return [each for each in found if (wanted or Wanted()).takes(each)][:limit]

    def head(self) -> Head:
        return Head(len(self.records), "00")

    def close(self) -> None:
        self.closed = True

    def actions(self) -> list[str]:
        return [record["action"] for record in self.records]


@dataclass
class Made:
    """An app and what it is made of."""

    backend: FakeBackend
    ledger: MemoryLedger
    app: FastAPI


def made_app(backend: FakeBackend | None = None, *, with_keys: bool = True, **settings: Any) -> Made:
    backend = backend or FakeBackend()
    ledger = MemoryLedger()
    app = create_app(
        made_settings(**settings), backend, ledger, keys=made_keys() if with_keys else None, sizes=SIZES
    )
    return Made(backend, ledger, app)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app on a free port of a real server; gives its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended at its start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


class RawRequest:
    """One request to an ASGI app whose client may go away; what it is sent is in ``messages``."""

    def __init__(self, path: str, body: bytes, token: str = TOKENS["user"]) -> None:
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]
        self.gone = asyncio.Event()
        self.messages: list[Any] = []
        headers = {"content-type": "application/json", "authorization": f"Bearer {token}", "host": "here"}
        self._scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
            "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip

    async def send_to(self, app: FastAPI) -> None:
        await app(self._scope, self._receive, self._send)

    async def _receive(self) -> Any:
        if self._messages:
            return self._messages.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])


def left_by_its_client(made: Made, path: str, body: bytes) -> RawRequest:
    """A request whose client goes away as soon as its work runs; the backend must hold."""

    async def scenario() -> RawRequest:
        async with made.app.router.lifespan_context(made.app):
            request = RawRequest(path, body)
            task = asyncio.create_task(request.send_to(made.app))
            await made.backend.running.wait()
            request.gone.set()
            await task
            return request

    return asyncio.run(scenario())
