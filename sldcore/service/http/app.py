"""The HTTP side of the service, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI

from sldcore.service.backend import Backend
from sldcore.service.http import (
    errors,
    routes_catalogue,
    routes_images,
    routes_moderations,
    routes_operations,
)
from sldcore.service.http.description import TITLE, describe
from sldcore.service.http.gateway import Gateway, Sizes
from sldcore.service.http.metrics import Metrics
from sldcore.service.http.observing import Observing
from sldcore.service.http.recording import Recorder
from sldcore.service.http.routes_page import add_description, add_page
from sldcore.service.ledger import Ledger
from sldcore.service.ledger.records import Wording
from sldcore.service.rights.access import Access
from sldcore.service.rights.keys import Keys
from sldcore.service.rights.rates import Rates
from sldcore.service.settings import ServiceSettings, size_of

_ROUTES: Final = (routes_images, routes_moderations, routes_catalogue, routes_operations)


def create_app(
    settings: ServiceSettings,
    backend: Backend,
    ledger: Ledger,
    access: Access | None = None,
    keys: Keys | None = None,
    *,
    sizes: Sizes | Callable[[], Sizes] | None = None,
) -> FastAPI:
    """The service as an ASGI app. Its lifespan starts the backend, drains it and closes the ledger.

    Args:
        settings: What the operator decides.
        backend: What carries jobs out; not started yet.
        ledger: Where records go; open.
        access: Who may use which policy; made of settings and keys by default.
        keys: The API keys; read from the settings' file by default. Without any, everybody may ask.
        sizes: The sizes that each model makes, or what tells them once the backend has started; the settings' own by default.

    Raises:
        ConfigurationError: Keys, policies or the ledger's secret cannot be had.
    """
    if keys is None and settings.keys is not None:
        keys = Keys.load(settings.keys)
    metrics = Metrics(backend.status)
    gateway = Gateway(
        settings=settings,
        backend=backend,
        recorder=Recorder(ledger, Wording.of(settings.audit), metrics),
        access=access or Access(settings, keys),
        keys=keys,
        rates=Rates(),
        metrics=metrics,
        sizes={},
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await backend.start()
            try:
                gateway.sizes.update(_sizes(settings, sizes))
                yield
            finally:
                await backend.drain(settings.limits.drain)
        finally:
            await gateway.recorder.settled()
            ledger.close()

    app = FastAPI(
        title=TITLE,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
        redirect_slashes=False,
    )
    app.state.gateway = gateway
    errors.install(app)
    for routes in _ROUTES:
        app.include_router(routes.router)
    describe(app, settings)
    if settings.docs:
        add_description(app)
    if settings.page:
        add_page(app)
    app.add_middleware(Observing, metrics=metrics)
    return app


def _sizes(settings: ServiceSettings, told: Sizes | Callable[[], Sizes] | None) -> Sizes:
    if told is not None:
        return told() if callable(told) else told
    return {name: [size_of(size) for size in model.sizes] for name, model in settings.models.items()}
