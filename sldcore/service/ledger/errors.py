"""What a ledger says when it cannot record: one clear message, and nothing is answered."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sldcore.errors import SafetyFailure


class Altered(Exception):
    """A ledger is not what this process, or its own end, says that it was."""


def cannot_record(path: Path, problem: Exception) -> SafetyFailure:
    """The error for a record that could not be written."""
    return SafetyFailure(
        f"cannot write the ledger {path}: {reason(problem)}. Nothing that leaves no record in it is answered"
    )


def reason(problem: Exception) -> str:
    """What went wrong, in few words."""
    if isinstance(problem, sqlite3.OperationalError) and "locked" in str(problem):
        return "another process has locked it for too long"
    return getattr(problem, "strerror", None) or str(problem)
