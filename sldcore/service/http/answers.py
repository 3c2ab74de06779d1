"""Pictures as clients are given them: entries of answers and events of streams."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import Request

from sldcore.provenance import json_text
from sldcore.service.http.accounts import reason_of
from sldcore.service.http.errors import of_failure
from sldcore.service.jobs import Answer, Failed, Partial, PictureAnswer, PictureJob, Progress
from sldcore.service.settings import ServiceSettings

FILES: Final = "/v1/images/files"

_HOST: Final = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?"
)
_USAGE: Final = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}
"""OpenAI's clients expect one with a streamed picture; nothing is counted in tokens here."""


def in_base64(content: bytes | None) -> str | None:
    """As JSON carries it; None stays None."""
    return None if content is None else b64encode(content).decode("ascii")


def entry(
    job: PictureJob, answer: Answer, operator: bool, address: Callable[[bytes], str] | None = None
) -> dict[str, Any]:
    """One picture of an answer; ``address`` keeps a picture and says where, if it is to be fetched."""
    if not isinstance(answer, PictureAnswer):
        return {"b64_json": None, "url": None, "seed": job.seed, **_error(answer)}
    png = answer.png
    place = {"b64_json": in_base64(png)} if address is None else {"url": address(png) if png else None}
    return {
        **{"b64_json": None, "url": None, **place},
        "seed": answer.account.get("seed", job.seed),
        "safety": safety(job, answer, operator),
    }


def _error(answer: Answer) -> dict[str, Any]:
    assert isinstance(answer, Failed), "pictures are answered with pictures or failures"
    return of_failure(answer).body


def safety(job: PictureJob, answer: PictureAnswer, operator: bool) -> dict[str, Any]:
    """What safety did to a picture; more of it if the request asked for an explanation."""
    account = answer.account
    said = {
        **{name: account[name] for name in ("withheld", "action", "flagged", "unreviewed")},
        "reason": reason_of(account, operator),
        **{name: account[name] for name in ("policy", "policy_digest", "attempts")},
    }
    if job.explain:
        said |= {name: account.get(name) for name in ("verdicts", "trace", "probes", "rows", "plain_rows")}
        said["seconds"] = round(sum(took for name, took in answer.timings.items() if name != "review"), 6)
        said |= {"heat_b64": in_base64(answer.heat), "curves": {**answer.curves}}
    if job.unguided:
        said["unguided_b64"] = in_base64(answer.unguided)
    return said


def progress_event(index: int, event: Progress) -> tuple[str, dict[str, Any]]:
    """A step of a picture."""
    kind = "image_generation.progress"
    return kind, {
        "type": kind,
        "index": index,
        "step": event.step,
        "total": event.total,
        "attempt": event.attempt,
    }


def partial_event(index: int, job: PictureJob, event: Partial) -> tuple[str, dict[str, Any]]:
    """A picture of the way there."""
    kind = "image_generation.partial_image"
    place = {"index": index, "partial_image_index": event.index, "b64_json": in_base64(event.png)}
    return kind, {"type": kind, **place, **_constant(job)}


def completed_event(
    index: int, job: PictureJob, answer: PictureAnswer, operator: bool
) -> tuple[str, dict[str, Any]]:
    """A picture."""
    kind = "image_generation.completed"
    shown = entry(job, answer, operator)
    del shown["url"]
    return kind, {"type": kind, "index": index, **shown, **_constant(job), "usage": _USAGE}


def failed_event(index: int, answer: Answer) -> tuple[str, dict[str, Any]]:
    """A picture that could not be made."""
    return "error", {"type": "error", "index": index, **_error(answer)}


def _constant(job: PictureJob) -> dict[str, Any]:
    return {
        "created_at": int(time.time()),
        "size": f"{job.width}x{job.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": "png",
    }


def server_sent(name: str, document: Mapping[str, Any]) -> bytes:
    """An event on the wire: JSON has no line breaks."""
    return f"event: {name}\ndata: {json_text(document)}\n\n".encode()


def base_address(request: Request, settings: ServiceSettings) -> str:
    """Where clients reach the service: as the settings say, else the Host header if that is a host, else the own address."""
    if settings.public_url is not None:
        return settings.public_url
    host = request.headers.get("host", "")
    scheme = "https" if request.url.scheme == "https" else "http"
    if not _HOST.fullmatch(host):
        named = f"[{settings.host}]" if ":" in settings.host else settings.host
        host = f"{named}:{settings.port}"
    return f"{scheme}://{host}"
