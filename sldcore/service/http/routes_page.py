"""The page, and the API's description for people: files of our own, which load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sldcore.service.http.description import page_of

FOLDER: Final = Path(__file__).parent / "page"

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: no code, style or picture but the service's own, and no request elsewhere."""

_HEADERS: Final = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}


def add_page(app: FastAPI, folder: Path = FOLDER) -> None:
    """Serve the page at / and its files at /page/*, if it is there."""
    index = folder / "index.html"
    if not index.is_file():
        return

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(index, headers=_HEADERS)

    app.mount("/page", _Guarded(StaticFiles(directory=folder)), name="page")


def add_description(app: FastAPI) -> None:
    """Serve the API's description for people at /docs."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(page_of(app.openapi()), media_type="text/html", headers=_HEADERS)


class _Guarded:
    """Files with the page's headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, guarded)
