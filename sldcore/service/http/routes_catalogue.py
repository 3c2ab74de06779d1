"""What a key may use: models, policies, and its own limits."""

from __future__ import annotations

from typing import Any, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from sldcore.documents import parse_mapping
from sldcore.policy import SafetyPolicy
from sldcore.service.http.errors import ServiceError, documented
from sldcore.service.http.gateway import Caller, Gateway, GatewayOf
from sldcore.service.rights.keys import Key

router: Final = APIRouter(tags=["catalogue"])


class ModelEntry(BaseModel):
    """A model, in OpenAI's shape, and what may be asked of it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When this service started.")
    owned_by: str = "operator"
    sizes: list[str] = Field(description="WIDTHxHEIGHT, the default first.")
    steps: int = Field(description="Where a request does not say.")
    min_steps: int
    max_steps: int


class ModelList(BaseModel):
    """Models, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class PolicyEntry(BaseModel):
    """A policy by the name that requests use."""

    name: str
    object: Literal["policy"] = "policy"
    description: str
    digest: str = Field(description="sha256 of everything that decides its behaviour.")
    default: bool = Field(description="What this key gets where a request names none.")


class PolicyList(BaseModel):
    """Policies in the operator's order."""

    object: Literal["list"] = "list"
    data: list[PolicyEntry]


class WholePolicy(PolicyEntry):
    """A policy with all that it says."""

    content: dict[str, Any] = Field(
        description="As in a policy file; options, which may name files and lists of terms, for operators' keys only."
    )


class Limits(BaseModel):
    """What one request may ask for."""

    pictures: int = Field(description="Largest n.")
    prompt_characters: int
    review_inputs: int
    review_pixels: int
    body_bytes: int
    deadline: float = Field(description="Seconds.")


class Me(BaseModel):
    """What a key may do."""

    id: str
    operator: bool
    policies: list[str]
    default_policy: str
    inline: bool = Field(description="It may send policies of its own.")
    models: list[str]
    limits: Limits = Field(description="With the default model.")


_OPERATORS: Final = {"options", "picture", "plugins", "requires"}
"""Of a policy, what is for operators' keys only."""

_ERRORS: Final = documented([401])
_ERRORS_OF_ONE: Final = documented([401, 404])


@router.get("/v1/models", operation_id="list_models", summary="Models", responses=_ERRORS)
async def models(gateway: GatewayOf, key: Caller) -> ModelList:
    """The models that this key may use."""
    return ModelList(data=[_model(gateway, key, name) for name in gateway.access.models_of(key)])


@router.get("/v1/models/{name}", operation_id="get_model", summary="A model", responses=_ERRORS_OF_ONE)
async def model(name: str, gateway: GatewayOf, key: Caller) -> ModelEntry:
    """One model."""
    gateway.model_for(key, name)
    return _model(gateway, key, name)


def _model(gateway: Gateway, key: Key, name: str) -> ModelEntry:
    settings = gateway.settings.models[name]
    limits = gateway.access.limits_of(key, settings)
    return ModelEntry(
        id=name,
        created=gateway.started,
        sizes=[f"{width}x{height}" for width, height in gateway.sizes.get(name, ())],
        steps=min(settings.steps, limits.max_steps),
        min_steps=limits.min_steps,
        max_steps=limits.max_steps,
    )


@router.get("/v1/policies", operation_id="list_policies", summary="Policies", responses=_ERRORS)
async def policies(gateway: GatewayOf, key: Caller) -> PolicyList:
    """The policies that this key may name."""
    found = gateway.access.policies_of(key)
    return PolicyList(data=[_policy(gateway, key, name, policy) for name, policy in found.items()])


@router.get("/v1/policies/{name}", operation_id="get_policy", summary="A policy", responses=_ERRORS_OF_ONE)
async def policy(name: str, gateway: GatewayOf, key: Caller) -> WholePolicy:
    """One policy, with all that this key may see of it."""
    found = gateway.access.policies_of(key).get(name)
    if found is None:
        raise ServiceError(404, "there is no such policy for this key", param="name", code="policy_not_found")
    entry = _policy(gateway, key, name, found)
    content = parse_mapping(found.dump(), source=name)
    return WholePolicy(**entry.model_dump(), content=content if key.operator else _without_options(content))


def _without_options(content: Any) -> Any:
    """A policy's content without what may name files, models and terms; the numbers of ``sld`` stay."""
    if isinstance(content, list):
        return [_without_options(each) for each in content]
    if not isinstance(content, dict):
        return content
    hidden = _OPERATORS - {"options"} if content.get("method") == "sld" else _OPERATORS
    return {name: _without_options(value) for name, value in content.items() if name not in hidden}


def _policy(gateway: Gateway, key: Key, name: str, policy: SafetyPolicy) -> PolicyEntry:
    return PolicyEntry(
        name=name,
        description=policy.description,
        digest=policy.digest,
        default=name == gateway.access.default_policy(key),
    )


@router.get("/v1/me", operation_id="who_am_i", summary="What this key may do", responses=_ERRORS)
async def me(gateway: GatewayOf, key: Caller) -> Me:
    """For pages and clients that show what can be asked for."""
    limits = gateway.settings.limits
    models = gateway.access.models_of(key)
    own = gateway.access.limits_of(key, next(iter(models.values())))
    return Me(
        id=key.id,
        operator=key.operator,
        policies=list(gateway.access.policies_of(key)),
        default_policy=gateway.access.default_policy(key),
        inline=key.inline,
        models=list(models),
        limits=Limits(
            pictures=own.pictures,
            prompt_characters=own.prompt_characters,
            review_inputs=limits.review_inputs,
            review_pixels=limits.review_pixels,
            body_bytes=limits.body_bytes,
            deadline=limits.deadline,
        ),
    )
