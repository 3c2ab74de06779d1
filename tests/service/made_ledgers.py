"""Ledgers of both formats for tests, and what an intruder does to them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sldcore.service.ledger.jsonl import JsonlLedger
from sldcore.service.ledger.reading import open_reader, verify_ledger
from sldcore.service.ledger.sqlite import SqliteLedger
from sldcore.service.ledger.verifying import Verification

SECRET = b"a secret of thirty-two characters"
LEDGERS: dict[str, Any] = {"sqlite": SqliteLedger, "jsonl": JsonlLedger}


def record(number: int, **fields: Any) -> dict[str, Any]:
    """A small record."""
    return {
        "format": 1, "kind": "image", "time": f"2026-05-01T10:00:{number % 60:02}.000Z", "request": f"req-{number}",
        "index": 0, "key": "anna", "policy": "medium", "action": "none", "flagged": False, **fields,
    }  # fmt: skip


def verified(path: Path, secret: bytes = SECRET, noted: str | None = None) -> Verification:
    """The ledger, verified as ``sld audit verify`` does."""
    return verify_ledger(open_reader(path), secret, noted)


def tampered(path: Path, *statements: str) -> None:
    """Run SQL on a ledger as somebody would who may write the file: triggers are taken away, and put back after."""
    with closing(sqlite3.connect(path)) as connection:
        kept = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in kept:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in (*statements, *(sql for _, sql in kept)):
            connection.execute(statement)
        connection.commit()
