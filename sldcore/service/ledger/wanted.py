"""Which records are wanted of a ledger: by time, key, policy, action and request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sldcore.service.ledger.chain import Entry

SERVICE: Final = ("begin", "start")
"""Kinds of records that are about the ledger and the service, not about a request."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a record must be like; None takes all.

    ``since`` (included) and ``until`` (excluded) are times as records have them. ``flagged`` is whether a filter that acts flagged it.
    Records of the service's own are left out unless ``service``.
    """

    request: str | None = None
    key: str | None = None
    policy: str | None = None
    action: str | None = None
    flagged: bool | None = None
    since: str | None = None
    until: str | None = None
    service: bool = False

    def takes(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is wanted. One that cannot be read always is."""
        if record.get("unreadable"):
            return True
        if not self.service and record.get("kind") in SERVICE:
            return False
        same = {"request": self.request, "key": self.key, "policy": self.policy, "action": self.action}
        if any(value is not None and record.get(name) != value for name, value in same.items()):
            return False
        if self.flagged is not None and bool(record.get("flagged")) != self.flagged:
            return False
        time = str(record.get("time", ""))
        return (self.since is None or time >= self.since) and (self.until is None or time < self.until)


def newest_rows(entries: Iterator[Entry], limit: int, wanted: Wanted) -> list[Mapping[str, Any]]:
    """The first ``limit`` of entries that are wanted, as rows; entries come newest first."""
    rows = (row for row in (entry.row() for entry in entries) if wanted.takes(row))
    return list(islice(rows, max(limit, 0)))
