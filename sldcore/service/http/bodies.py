"""Bodies of requests: read up to a limit, as JSON of which every part can be written down again, and checked by a model.

Nothing of what a client sent is quoted in a message but the names of fields.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from math import isfinite
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from sldcore.errors import listed, nearest
from sldcore.service.http.errors import ServiceError, invalid

SECONDS: Final = 60.0
"""How long a body may take to arrive."""

MOST_DEPTH: Final = 32
MOST_VALUES: Final = 200_000
"""Values of one body, at most: small ones cost a hundred times their length in memory."""

_DIGITS: Final = 18
"""Of a declared length: already the first ones of a longer one say that it is too much."""

_NAME: Final = 64
"""Characters of a client's own name for a field that a message repeats."""

M = TypeVar("M", bound=BaseModel)


async def read_request(request: Request, model: type[M], most: int) -> M:
    """The body as a ``model``, of at most ``most`` bytes.

    Raises:
        ServiceError: 400, 408, 413 or 415, as fits what is wrong with it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ServiceError(
            415, "send the request as JSON, with the header Content-Type: application/json", code="not_json"
        )
    document = parse_json(await _content(request, most))
    if not isinstance(document, dict):
        raise invalid("the body must be a JSON object", code="invalid_json")
    try:
        return model.model_validate(document)
    except ValidationError as problem:
        raise _described(problem, model) from None


async def _content(request: Request, most: int) -> bytes:
    declared = request.headers.get("content-length", "")
    expected = int(declared[:_DIGITS]) if declared.isascii() and declared.isdigit() else 0
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(SECONDS):
            # A little too much is read to its end and thrown away: a client that is still sending reads no answer.
            if expected <= 2 * most:
                async for part in request.stream():
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    elif size > 2 * most:
                        break
    except TimeoutError:
        raise ServiceError(408, f"the body did not arrive within {SECONDS:.0f} s", code="timeout") from None
    if max(size, expected) > most:
        message = f"the body is larger than {most:,} bytes, the most that this address takes"
        raise ServiceError(413, message, code="body_too_large", headers={"Connection": "close"})
    return b"".join(parts)


def parse_json(content: bytes) -> Any:
    """Strict JSON: UTF-8, each key once, finite numbers, whole characters, neither deep nor of very many values.

    Raises:
        ServiceError: 400.
    """
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise invalid(f"the body has more than {MOST_VALUES:,} values", code="invalid_json")
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_once_each)
    except UnicodeDecodeError:
        raise invalid("the body is not UTF-8", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as problem:  # JSONDecodeError says where; long integers are ValueErrors too
        where = f" at character {problem.pos}" if isinstance(problem, json.JSONDecodeError) else ""
        raise invalid(f"the body is not JSON{where}", code="invalid_json") from None
    _check(document)
    return document


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise invalid("the body has an object that gives a key twice", code="invalid_json")
    return found


def _check(document: Any) -> None:
    level: list[Any] = [document]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for value in level:
            _check_alone(value)
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
        if not below:
            return
        level = below
    raise _too_deep()


def _check_alone(value: Any) -> None:
    if isinstance(value, float) and not isfinite(value):
        raise invalid("the body has a number that is not finite", code="invalid_json")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            message = "the body has half a character (a lone surrogate, \\ud800 to \\udfff)"
            raise invalid(message, code="invalid_json") from None


def _too_deep() -> ServiceError:
    return invalid(f"the body is nested more than {MOST_DEPTH} levels deep", code="invalid_json")


def _described(problem: ValidationError, model: type[BaseModel]) -> ServiceError:
    """The first thing that is wrong: one message that names the field, and what is allowed."""
    error = problem.errors(include_url=False, include_input=False)[0]
    # Of a union, the branches that were tried are no fields.
    place = [part for part in error["loc"] if isinstance(part, int) or part in model.model_fields]
    param = ".".join(map(str, place)) or None
    if error["type"] == "extra_forbidden":
        return _unknown(str(error["loc"][-1]), model.model_fields)
    if error["type"] == "missing":
        return invalid(f"the field '{param}' is missing", param, "missing_required_parameter")
    if error["type"] == "none_required":
        return invalid(f"the field '{param}' is not supported here", param, "unsupported_parameter")
    return invalid(f"{param}: {error['msg'].removeprefix('Value error, ')}", param)


def _unknown(name: str, known: Iterable[str]) -> ServiceError:
    shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name[:_NAME])
    message = f"unknown field '{shown}'{nearest(shown, known)} (available: {listed(known)})"
    return invalid(message, shown, "unknown_parameter")
