"""Errors as clients of OpenAI's API know them: ``{"error": {"message", "type", "param", "code"}}`` whatever went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from sldcore.service.jobs import Failed, Reason

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_OF_REASON: Final[Mapping[Reason, int]] = {
    "invalid": 400,
    "failed": 500,
    "lost": 502,
    "deadline": 504,
    "cancelled": 503,
    "draining": 503,
}

WHEN: Final = {
    400: "The request makes no sense here: `message` says why, `param` which field.",
    401: "There is no valid API key.",
    403: "The key may not ask for this; where a policy is weaker than the floor, `message` says in what.",
    404: "There is no such thing, or none that this key may use.",
    408: "The request's body did not arrive in time.",
    413: "The request's body is too large.",
    415: "The request's body is not `application/json`.",
    429: "Too many requests, or the queue is full; `Retry-After` says when to try again.",
    500: "Something broke. The message gives no details; the service's log does.",
    502: "The worker died twice while it carried this out.",
    503: "The service is starting or stopping, or cannot write its audit trail: then nothing is answered.",
    504: "The request took longer than the service allows.",
}
"""What each status of an error means here."""


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetails


class ServiceError(Exception):
    """An answer that is an error. ``type`` follows from the status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """As clients read it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }

    @property
    def response(self) -> JSONResponse:
        """The HTTP answer."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ServiceError:
    """The request is the client's to change."""
    return ServiceError(400, message, code=code, param=param)


def too_many(message: str, retry_after: float, code: str) -> ServiceError:
    """The client is to wait for ``retry_after`` seconds, rounded up to whole ones."""
    return ServiceError(429, message, code=code, headers={"Retry-After": str(max(1, ceil(retry_after)))})


def unavailable(message: str, code: str) -> ServiceError:
    """The service cannot answer now, and may later."""
    return ServiceError(503, message, code=code)


def of_failure(failed: Failed) -> ServiceError:
    """A job without an answer, as an error."""
    return ServiceError(_OF_REASON[failed.reason], failed.message, code=failed.reason)


def documented(statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its description."""
    documents: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": WHEN[status]} for status in statuses
    }
    for status, name in ((401, "WWW-Authenticate"), (429, "Retry-After")):
        if status in documents:
            documents[status]["headers"] = {name: {"schema": {"type": "string"}}}
    return documents


def install(app: FastAPI) -> None:
    """Have the app answer every error in this shape, those of the framework too."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ServiceError)
        return error.response

    async def of_framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _translated(request, error).response

    async def of_parameters(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return invalid(f"{name}: {first['msg']}", name).response

    app.add_exception_handler(ServiceError, ours)
    app.add_exception_handler(HTTPException, of_framework)
    app.add_exception_handler(RequestValidationError, of_parameters)


def _translated(request: Request, error: HTTPException) -> ServiceError:
    messages = {
        404: "there is nothing at this address; /openapi.json describes what there is",
        405: f"this address takes no {request.method}; `Allow` says what it takes",
    }
    status = error.status_code
    message = messages.get(status) or HTTPStatus(status).phrase
    code = {404: "not_found", 405: "method_not_allowed"}.get(status)
    return ServiceError(status, message, code=code, headers=error.headers)
