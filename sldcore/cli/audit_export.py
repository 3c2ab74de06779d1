"""Records as a file: CSV for tables, or lines of JSON that are a ledger themselves. It appears when it is complete."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, Final

from sldcore.cli.audit_text import flagged_by
from sldcore.service.ledger.chain import Entry
from sldcore.service.ledger.jsonl_reading import line_of
from sldcore.service.ledger.wanted import Wanted

COLUMNS: Final = (
    "seq", "time", "kind", "request", "index", "key", "model", "prompt", "prompt_sha256", "picture_sha256", "seed", "policy",
    "policy_digest", "action", "flagged", "withheld", "unreviewed", "attempts", "flagged_by", "verdicts", "errors", "failed", "rows",
    "partials", "timings", "hash",
)  # fmt: skip
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def export_csv(entries: Iterable[Entry], wanted: Wanted, out: Path) -> int:
    """Write the wanted records as CSV; what is no single value is JSON. Returns how many.

    Raises:
        OSError: The file cannot be written.
    """
    with appearing(out) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        rows = (row for row in (entry.row() for entry in entries) if wanted.takes(row))
        return sum(writer.writerow(_cells(row)) > 0 for row in rows)


def export_jsonl(entries: Iterable[Entry], wanted: Wanted, out: Path) -> int:
    """Write the wanted records as lines of a ledger. Returns how many.

    Raises:
        OSError: The file cannot be written.
    """
    count = 0
    with appearing(out) as file:
        for entry in entries:
            if wanted.takes(entry.row()):
                file.write(line_of(entry).decode())
                count += 1
    return count


@contextmanager
def appearing(path: Path) -> Iterator[IO[str]]:
    """A text file that is there when it is complete, and not at all if something fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            temporary.chmod(0o600)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _cells(row: Mapping[str, Any]) -> list[Any]:
    whole = {**row, "flagged_by": flagged_by(row)}
    return [_cell(whole.get(name)) for name in COLUMNS]


def _cell(value: Any) -> Any:
    """A value for a table. Spreadsheets run texts that begin as formulas do, so these get an apostrophe."""
    if isinstance(value, dict | list):
        return json.dumps(value) if value else ""
    if isinstance(value, bool):
        return int(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
