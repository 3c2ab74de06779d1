"""``POST /v1/images/generations`` and the pictures that are fetched by address."""

from __future__ import annotations

import time
from collections.abc import Callable
from secrets import randbelow
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from sldcore.provenance import json_text
from sldcore.service.http.answers import FILES, base_address, entry
from sldcore.service.http.bodies import read_request
from sldcore.service.http.carrying_out import Order, carry_out, refusals_recorded, require_some
from sldcore.service.http.errors import ServiceError, documented, invalid, unavailable
from sldcore.service.http.gateway import Caller, Facts, FactsOf, Gateway, GatewayOf, take
from sldcore.service.http.schemas import IMAGES_BYTES, MOST_SEED, ImageRequest, ImagesAnswer
from sldcore.service.http.streaming import EventStream, events_of
from sldcore.service.http.texts import checked_text
from sldcore.service.http.watching import ClientGone, unless_gone
from sldcore.service.jobs import PictureJob
from sldcore.service.rights.keys import Key

router: Final = APIRouter(tags=["images"])

GONE: Final = 499
"""What the log says of a request whose client went away, as nginx does; nobody reads it as an answer."""

_EVENTS: Final = {
    "schema": {"type": "string"},
    "example": 'event: image_generation.completed\ndata: {"type":"image_generation.completed","index":0,"b64_json":"iVBO..."}\n\n',
}


@router.post(
    "/v1/images/generations",
    operation_id="generate_images",
    summary="Make pictures",
    response_model=ImagesAnswer,
    responses={
        **documented([400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504]),
        200: {
            "description": "The pictures. One that was withheld says why in its `safety`, one that failed in its `error`; only "
            "if all fail is that the answer's status. With `stream: true` the answer is server-sent events: "
            "`image_generation.partial_image`, `image_generation.completed`, and `image_generation.progress` where asked for; "
            "`error` comes last.",
            "content": {"text/event-stream": _EVENTS},
        },
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/ImageRequest"},
                    "example": {"prompt": "a red knight on a meadow", "n": 1, "seed": 1, "steps": 10},
                }
            },
        }
    },
)
async def generate(request: Request, gateway: GatewayOf, key: Caller, facts: FactsOf) -> Response:
    """Make pictures of a prompt, guided and reviewed as a policy says.

    OpenAI's shape with fields of our own: `seed`, `steps`, `policy`, `explain`, `unguided`, `progress`. Accepted and ignored, since
    they change nothing here: `user`, `safety_identifier`, `quality`, `style`, `complexity`, `moderation`, `output_compression`.
    Unknown fields are refused.
    """
    most = min(gateway.settings.limits.body_bytes, IMAGES_BYTES)
    asked = await read_request(request, ImageRequest, most)
    async with refusals_recorded(gateway, "image", facts, key):
        order = Order(facts.id, key, await _jobs(gateway, key, asked, facts))
    facts.pictures = len(order.jobs)
    if gateway.settings.log_prompts:
        facts.detail = f" prompt={asked.prompt!r}"
    try:
        if asked.stream:
            events = events_of(gateway, order, bool(asked.progress))
            return EventStream(await unless_gone(request.receive, anext(events)), events)
        answers = await unless_gone(request.receive, carry_out(gateway, order))
    except ClientGone:
        return Response(status_code=GONE)
    require_some(answers)
    address = _address(request, gateway) if asked.response_format == "url" else None
    pairs = zip(order.jobs, answers, strict=True)
    first = order.jobs[0]
    assert isinstance(first, PictureJob), "this route makes pictures"
    document = {
        "created": int(time.time()),
        "data": [
            entry(job, answer, key.operator, address) for job, answer in pairs if isinstance(job, PictureJob)
        ],
        "background": "opaque",
        "output_format": "png",
        "size": f"{first.width}x{first.height}",
        "model": first.model,
    }
    return Response(json_text(document), media_type="application/json", headers={"Cache-Control": "no-store"})


async def _jobs(gateway: Gateway, key: Key, asked: ImageRequest, facts: Facts) -> list[PictureJob]:
    """The jobs that a request asks for, within everybody's limits and the key's, and counted against its rates."""
    model, settings = gateway.model_for(key, asked.model)
    limits = gateway.access.limits_of(key, settings)
    prompt = checked_text(asked.prompt, limits.prompt_characters, "prompt")
    count = asked.n or 1
    if count > limits.pictures:
        raise invalid(
            f"n is {count}, and at most {limits.pictures} pictures are made at once for this key", "n"
        )
    steps = asked.steps or min(settings.steps, limits.max_steps)
    if not limits.min_steps <= steps <= limits.max_steps:
        allowed = f"{limits.min_steps} to {limits.max_steps}"
        raise invalid(f"steps is {steps}, and {allowed} are allowed for this model and key", "steps")
    width, height = _size(gateway, model, asked.size)
    _require_stream(asked)
    # Counted before anything is refused: that costs a look at the policy, and a record.
    take(gateway, key, count)
    if asked.unguided and not key.operator:
        message = "unguided pictures are for operators' keys only"
        raise ServiceError(403, message, param="unguided", code="operators_only")
    policy = await gateway.policy_for(key, asked.policy)
    return [
        PictureJob(
            id=f"{facts.id}-{index}",
            client=gateway.client(key),
            model=model,
            prompt=prompt,
            seed=seed,
            policy=policy,
            width=width,
            height=height,
            steps=steps,
            guidance_scale=settings.guidance_scale,
            explain=bool(asked.explain),
            unguided=bool(asked.unguided),
            partials=asked.partial_images or 0,
        )
        for index, seed in enumerate(_seeds(asked.seed, count))
    ]


def _size(gateway: Gateway, model: str, asked: str | None) -> tuple[int, int]:
    sizes = gateway.sizes.get(model)
    if not sizes:
        raise unavailable("the model is not loaded yet; try again soon", "starting")
    names = {f"{width}x{height}": (width, height) for width, height in sizes}
    if asked is None or asked == "auto":
        return sizes[0]
    if asked not in names:
        raise invalid(f"there is no such size (available: {', '.join(names)})", "size")
    return names[asked]


def _seeds(asked: int | None, count: int) -> list[int]:
    if asked is None:
        return [randbelow(MOST_SEED + 1) for _ in range(count)]
    if asked + count - 1 > MOST_SEED:
        raise invalid(
            f"seed is {asked}, and with n {count} the last picture's would be above {MOST_SEED}", "seed"
        )
    return [asked + index for index in range(count)]


def _require_stream(asked: ImageRequest) -> None:
    if not asked.stream:
        for name, value in (("partial_images", asked.partial_images), ("progress", asked.progress)):
            if value:
                raise invalid(f"{name} needs `stream: true`", name)
    elif asked.response_format == "url":
        raise invalid("streamed pictures come as b64_json", "response_format")


def _address(request: Request, gateway: Gateway) -> Callable[[bytes], str]:
    base = base_address(request, gateway.settings)
    return lambda png: f"{base}{FILES}/{gateway.store.put(png)}.png"


@router.get(
    FILES + "/{name}.png",
    operation_id="fetch_image",
    summary="Fetch a picture",
    response_class=Response,
    responses={**documented([404]), 200: {"description": "The picture.", "content": {"image/png": {}}}},
)
async def fetch(name: str, gateway: GatewayOf) -> Response:
    """A picture of an answer with `response_format: url`, for an hour. Its name is the only key to it."""
    png = gateway.store.get(name)
    if png is None:
        raise ServiceError(404, "there is no such picture, or its time is over", code="not_found")
    return Response(png, media_type="image/png", headers={"Cache-Control": "private, no-store"})
