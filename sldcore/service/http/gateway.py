"""What the routes share: one object of an app, and who is asking."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from sldcore.errors import listed
from sldcore.policy import SafetyPolicy
from sldcore.service.backend import Backend
from sldcore.service.http.errors import ServiceError, invalid, too_many
from sldcore.service.http.metrics import Metrics
from sldcore.service.http.pictures_store import PicturesStore
from sldcore.service.http.recording import Recorder
from sldcore.service.rights.access import Access, Forbidden
from sldcore.service.rights.keys import Key, Keys
from sldcore.service.rights.rates import Rates, TooMany
from sldcore.service.settings import ModelSettings, ServiceSettings, is_loopback

log: Final = logging.getLogger("sldcore.service")

Sizes = Mapping[str, Sequence[tuple[int, int]]]
"""Model -> widths and heights that may be asked for, the default first."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that answers need. ``sizes`` are filled in when the workers are warm."""

    settings: ServiceSettings
    backend: Backend
    recorder: Recorder
    access: Access
    keys: Keys | None
    rates: Rates
    metrics: Metrics
    sizes: dict[str, Sequence[tuple[int, int]]]
    store: PicturesStore = field(default_factory=PicturesStore)
    started: int = field(default_factory=lambda: int(time.time()))

    def model_for(self, key: Key, asked: str | None) -> tuple[str, ModelSettings]:
        """The model that a request means.

        Raises:
            ServiceError: 404: there is none of this name for this key.
        """
        models = self.access.models_of(key)
        name = asked if asked is not None else next(iter(models), "")
        if name not in models:
            message = f"there is no such model for this key (available: {listed(models)})"
            raise ServiceError(404, message, param="model", code="model_not_found")
        return name, models[name]

    async def policy_for(self, key: Key, asked: str | Mapping[str, Any] | None) -> SafetyPolicy:
        """The policy that a request means, in a thread: reading an inline one takes its time.

        Raises:
            ServiceError: 403: the key may not use it, or it is weaker than the floor. 400: it makes no sense.
        """
        try:
            return await asyncio.to_thread(self.access.policy_for, key, asked)
        except Forbidden as problem:
            raise ServiceError(403, str(problem), param="policy", code="policy_forbidden") from None
        except ValueError as problem:
            raise invalid(str(problem), "policy", "invalid_policy") from None

    def client(self, key: Key) -> str:
        """Whose turn it is in the queue: the key's; where there are no keys, that of each request."""
        return "" if key is self.access.everybody else key.id

    def label(self, policy: SafetyPolicy) -> str:
        """A policy's name for metrics: what clients made up themselves is 'inline'."""
        return policy.name if self.access.policies.get(policy.name) is policy else "inline"


@dataclass(slots=True)
class Facts:
    """What is known of a request by the time that it is logged."""

    id: str = field(default_factory=lambda: f"req_{token_hex(12)}")
    key: str = "-"
    pictures: int = 0
    detail: str = ""


async def gateway_of(request: Request) -> Gateway:
    """The app's gateway; asynchronous, as all that routes depend on, since FastAPI runs others in threads."""
    gateway: Gateway = request.app.state.gateway
    return gateway


async def facts_of(request: Request) -> Facts:
    """What the log will say of this request."""
    facts: Facts = request.scope["sld.facts"]
    return facts


_bearer: Final = HTTPBearer(auto_error=False, scheme_name="key", description="A key made by `sld keys new`.")


def _require_loopback(request: Request) -> None:
    """Refuse what a page from elsewhere sends here by a name of its own that leads to this machine.

    Raises:
        ServiceError: 403.
    """
    if not is_loopback(request.url.hostname or ""):
        message = "a service without keys answers to localhost only; make keys with `sld keys new`"
        raise ServiceError(403, message, code="host_forbidden")


async def caller(
    request: Request,
    gateway: Annotated[Gateway, Depends(gateway_of)],
    facts: Annotated[Facts, Depends(facts_of)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Key:
    """Whose request this is; everybody's, if the service has no keys.

    Raises:
        ServiceError: 401.
    """
    if gateway.keys is None:
        _require_loopback(request)
        key: Key | None = gateway.access.everybody
    else:
        key = gateway.keys.find(credentials.credentials) if credentials is not None else None
    if key is None:
        what = "this API key is not known" if credentials is not None else "there is no API key"
        message = f"{what}; send one as Authorization: Bearer KEY"
        raise ServiceError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    facts.key = key.id
    return key


async def operator(key: Annotated[Key, Depends(caller)]) -> Key:
    """An operator's key.

    Raises:
        ServiceError: 401 or 403.
    """
    if not key.operator:
        raise ServiceError(403, "this is for operators' keys only", code="operators_only")
    return key


def take(gateway: Gateway, key: Key, amount: int) -> None:
    """Count a request for ``amount`` pictures or reviews against its key's rates.

    Raises:
        ServiceError: 429; or 400: the key may never have so many in a minute.
    """
    try:
        gateway.rates.take(key, amount)
    except TooMany as problem:
        raise too_many(str(problem), problem.retry_after, "rate_limit_exceeded") from None
    except ValueError as problem:
        raise invalid(str(problem)) from None


GatewayOf = Annotated[Gateway, Depends(gateway_of)]
FactsOf = Annotated[Facts, Depends(facts_of)]
Caller = Annotated[Key, Depends(caller)]
Operator = Annotated[Key, Depends(operator)]
