"""How the service does: for load balancers, Prometheus and operators."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from sldcore.service.http.errors import documented, unavailable
from sldcore.service.http.gateway import Gateway, GatewayOf, Operator, log
from sldcore.service.http.metrics import CONTENT_TYPE
from sldcore.service.ledger.wanted import Wanted

router: Final = APIRouter(tags=["operations"])

_NOT_READY: Final[dict[int | str, dict[str, Any]]] = {503: {"description": "Not ready; `reasons` says why."}}


@router.get("/healthz", operation_id="health", summary="Is the process alive?")
async def health() -> dict[str, str]:
    """Always the same, as long as the process answers at all."""
    return {"status": "ok"}


@router.get("/readyz", operation_id="readiness", summary="Can it take work?", responses=_NOT_READY)
async def readiness(gateway: GatewayOf) -> JSONResponse:
    """503 while no worker is ready, the queue is full, or records cannot be written.

    With some of its workers it is ready; `reasons` then says that others cannot be started.
    """
    await gateway.recorder.try_again()
    reasons = _reasons(gateway)
    status = "not ready" if reasons else "ready"
    document = {"status": status, "reasons": reasons + _missing_workers(gateway)}
    return JSONResponse(document, 503 if reasons else 200)


def _reasons(gateway: Gateway) -> list[str]:
    status = gateway.backend.status()
    reasons = (
        [] if status.ready else [f"{status.alive} of {status.workers} workers are alive, and none is ready"]
    )
    if status.queued >= status.capacity:
        reasons.append(f"the queue is full ({status.queued})")
    if gateway.recorder.problem is not None:
        reasons.append(gateway.recorder.problem)
    return reasons


def _missing_workers(gateway: Gateway) -> list[str]:
    """That some cannot be started. Anybody may ask, so that what their problems are stays in the log."""
    count = len(gateway.backend.status().problems)
    return [f"{count} workers cannot be started; the log says why"] if count else []


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
)
async def metrics(gateway: GatewayOf) -> Response:
    """Requests, pictures, queue, batches and workers. No prompts, and nothing of keys."""
    return Response(gateway.metrics.text(), media_type=CONTENT_TYPE)


@router.get(
    "/v1/audit",
    operation_id="list_records",
    summary="What was recorded",
    responses=documented([400, 401, 403, 503]),
)
async def audit(
    gateway: GatewayOf,
    _: Operator,
    limit: Annotated[int, Query(ge=1, le=500, description="How many, at most.")] = 50,
    before: Annotated[
        int | None, Query(ge=0, le=2**63 - 1, description="`next_before` of the page before.")
    ] = None,
    action: Annotated[str | None, Query(max_length=64, description="Only with this action.")] = None,
    policy: Annotated[str | None, Query(max_length=64, description="Only under this policy.")] = None,
    of: Annotated[str | None, Query(alias="key", max_length=64, description="Only of this key.")] = None,
    request: Annotated[str | None, Query(max_length=64, description="Only of this request.")] = None,
) -> dict[str, Any]:
    """Records, the newest first; for operators. `next_before` is null at the end."""
    wanted = Wanted(request=request, key=of, policy=policy, action=action)
    try:
        records = await asyncio.to_thread(gateway.recorder.ledger.page, limit, before, wanted)
    except Exception:
        log.exception("the audit trail cannot be read")
        raise unavailable("the audit trail cannot be read", "audit_unavailable") from None
    more = len(records) == limit
    return {"object": "list", "data": records, "next_before": records[-1]["seq"] if more else None}
