"""Options of ``sld audit`` that several commands have: which ledger, which secret, which records."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sldcore.audit_records import time_text
from sldcore.errors import ConfigurationError

if TYPE_CHECKING:
    from sldcore.service.ledger.wanted import Wanted

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}

Ledger = Annotated[
    Path,
    typer.Option(
        "--ledger", "-l", metavar="FILE", envvar="SLD_SERVE_AUDIT__PATH", help="A ledger, or an audit log."
    ),
]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar="SLD_SERVE_AUDIT__SECRET_FILE",
        help="The secret that the ledger is chained with.",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="From this time on: 2026-05-01, 2026-05-01T12:30 (UTC), or 90m, 12h, 7d ago."
    ),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before this time.")]
Key = Annotated[str | None, typer.Option(metavar="ID", help="Of this API key.")]
Policy = Annotated[str | None, typer.Option(metavar="NAME", help="Under this policy.")]
Action = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With this action: none, flag, blur, block, failed, refused, ..."),
]
Flagged = Annotated[
    bool | None, typer.Option("--flagged/--not-flagged", help="Those that a filter flagged, or the others.")
]
Service = Annotated[bool, typer.Option("--service", help="Also the service's own: beginning and starts.")]


def wanted_records(
    since: str | None,
    until: str | None,
    key: str | None,
    policy: str | None,
    action: str | None,
    flagged: bool | None,
    service: bool,
) -> Wanted:
    """What the options ask for.

    Raises:
        ConfigurationError: A time is none.
    """
    from sldcore.service.ledger.wanted import Wanted

    return Wanted(
        None, key, policy, action, flagged, _time("--since", since), _time("--until", until), service
    )


def _time(option: str, text: str | None) -> str | None:
    """A point in time as records have it; without a zone it is UTC."""
    if text is None:
        return None
    try:
        if ago := re.fullmatch(r"([0-9]{1,6})([mhd])", text):
            return time_text(datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
        time = datetime.fromisoformat(text)
        return time_text(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{option} '{text}' is no time; write 2026-05-01, 2026-05-01T12:30, or 90m, 12h, 7d for so long ago"
        ) from None
