"""``POST /v1/moderations``: texts and pictures reviewed with a policy's filters."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from sldcore.policy import SafetyPolicy
from sldcore.provenance import json_text
from sldcore.service.http.accounts import categories_of, failure_words, reason_of
from sldcore.service.http.bodies import read_request
from sldcore.service.http.carrying_out import Order, carry_out, refusals_recorded, require_some
from sldcore.service.http.errors import documented, invalid
from sldcore.service.http.gateway import Caller, FactsOf, GatewayOf, take
from sldcore.service.http.pictures import picture_of
from sldcore.service.http.routes_images import GONE
from sldcore.service.http.schemas import ModerationAnswer, ModerationRequest
from sldcore.service.http.texts import checked_text
from sldcore.service.http.watching import ClientGone, unless_gone
from sldcore.service.jobs import Answer, Failed, ReviewAnswer, ReviewJob

router: Final = APIRouter(tags=["moderations"])

Kind = Literal["text", "image"]

_DECODING: Final = ThreadPoolExecutor(2, "decoding")
"""Large pictures take seconds; whoever sends many of them keeps only others waiting who send pictures, too."""


@dataclass(frozen=True, slots=True)
class Part:
    """A text, or a picture's data URL; ``param`` is where in the request it stood."""

    kind: Kind
    content: str
    param: str


@router.post(
    "/v1/moderations",
    operation_id="review",
    summary="Review texts and pictures",
    response_model=ModerationAnswer,
    responses=documented([400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504]),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/ModerationRequest"},
                    "example": {"input": "a red knight on a meadow"},
                }
            },
        }
    },
)
async def review(request: Request, gateway: GatewayOf, key: Caller, facts: FactsOf) -> Response:
    """Review texts with a policy's prompt filters and pictures with its filters.

    Categories are those of the filters, not OpenAI's: nothing is said of what nobody looked for. What could not be reviewed is
    `flagged: true`, and `sld.errors` says why.
    """
    limits = gateway.settings.limits
    asked = await read_request(request, ModerationRequest, limits.body_bytes)
    groups = groups_of(asked.input, min(limits.review_inputs, limits.client_queue))
    model, settings = gateway.model_for(key, asked.model)
    parts = [part for group in groups for part in group]
    most = gateway.access.limits_of(key, settings).prompt_characters
    # Counted before a policy is refused, which leaves a record, and before pictures are decoded: both cost something.
    take(gateway, key, len(parts))
    facts.pictures = len(parts)
    async with refusals_recorded(gateway, "review", facts, key):
        policy = await gateway.policy_for(key, asked.policy)
    contents = await asyncio.get_running_loop().run_in_executor(
        _DECODING, lambda: [_content(part, most, limits.review_pixels) for part in parts]
    )
    jobs = [
        ReviewJob(f"{facts.id}-{index}", model, policy, client=gateway.client(key), **content)
        for index, content in enumerate(contents)
    ]
    try:
        answers = await unless_gone(request.receive, carry_out(gateway, Order(facts.id, key, jobs)))
    except ClientGone:
        return Response(status_code=GONE)
    if any(isinstance(answer, Failed) and answer.reason not in ("failed", "lost") for answer in answers):
        require_some(answers)
    found = iter(zip(parts, answers, strict=True))
    results = [_result([next(found) for _ in group], policy, key.operator) for group in groups]
    document = {"id": f"modr-{facts.id.removeprefix('req_')}", "model": model, "results": results}
    return Response(json_text(document), media_type="application/json", headers={"Cache-Control": "no-store"})


def groups_of(asked: Any, most: int) -> list[list[Part]]:
    """The parts that share a result: each text alone, or all parts of a list of them.

    Raises:
        ServiceError: 400: it is none of what ``input`` may be, or more than ``most``.
    """
    if isinstance(asked, str):
        return [[Part("text", asked, "input")]]
    if not isinstance(asked, list) or not asked:
        raise invalid("input must be a text, a list of texts, or a list of parts", "input")
    if len(asked) > most:
        raise invalid(f"input has {len(asked)} entries, and at most {most} are reviewed at once", "input")
    if all(isinstance(each, str) for each in asked):
        return [[Part("text", each, f"input.{index}")] for index, each in enumerate(asked)]
    return [[_part(each, f"input.{index}") for index, each in enumerate(asked)]]


def _part(asked: Any, param: str) -> Part:
    match asked:
        case {"type": "text", "text": str(text), **rest} if not rest:
            return Part("text", text, f"{param}.text")
        case {"type": "image_url", "image_url": {"url": str(url), **others}, **rest} if (
            not rest and not others
        ):
            return Part("image", url, f"{param}.image_url.url")
    message = f'{param} must be {{"type": "text", "text": ...}} or {{"type": "image_url", "image_url": {{"url": "data:..."}}}}'
    raise invalid(message, param)


def _content(part: Part, most_characters: int, most_pixels: int) -> dict[str, Any]:
    if part.kind == "text":
        return {"text": checked_text(part.content, most_characters, part.param)}
    return {"picture": picture_of(part.content, most_pixels, part.param)}


def _result(found: Sequence[tuple[Part, Answer]], policy: SafetyPolicy, operator: bool) -> dict[str, Any]:
    """One result for some parts: of a category, the highest score."""
    scores: dict[str, float] = {}
    kinds: dict[str, list[Kind]] = {}
    above: set[str] = set()
    errors: list[dict[str, Any]] = []
    for part, answer in found:
        errors += _errors(part, answer, operator)
        for verdict in _acting(answer):
            flagged_for = categories_of(verdict)
            above.update(flagged_for)
            for name, score in {**dict.fromkeys(flagged_for, 1.0), **verdict["scores"]}.items():
                # What is no number could not be judged.
                scores[name] = max(scores.get(name, 0.0), 1.0 if score is None else score)
                if part.kind not in kinds.setdefault(name, []):
                    kinds[name].append(part.kind)
    flagged = any(isinstance(answer, ReviewAnswer) and answer.account["flagged"] for _, answer in found)
    return {
        "flagged": flagged or bool(errors),
        "categories": {name: name in above for name in scores},
        "category_scores": scores,
        "category_applied_input_types": kinds,
        "sld": {
            "policy": policy.name,
            "policy_digest": policy.digest,
            "inputs": [_input(part, answer, operator) for part, answer in found],
            "errors": errors,
        },
    }


def _acting(answer: Answer) -> list[Mapping[str, Any]]:
    verdicts = answer.account["verdicts"] if isinstance(answer, ReviewAnswer) else ()
    return [verdict for verdict in verdicts if not verdict["shadow"]]


def _errors(part: Part, answer: Answer, operator: bool) -> list[dict[str, Any]]:
    if isinstance(answer, Failed):
        return [{"input": part.param, "message": answer.message}]
    failures = answer.account["errors"]
    return [{"input": part.param, "message": failure_words(each, operator)} for each in failures]


def _input(part: Part, answer: Answer, operator: bool) -> dict[str, Any]:
    if not isinstance(answer, ReviewAnswer):
        return {"input": part.param, "type": part.kind, "flagged": True, "action": None, "verdicts": []}
    account = answer.account
    return {
        "input": part.param,
        "type": part.kind,
        "flagged": bool(account["flagged"] or account["errors"]),
        "action": account["action"],
        "reason": reason_of(account, operator),
        "verdicts": account["verdicts"],
    }
