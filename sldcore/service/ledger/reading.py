"""Reads whatever holds records: a ledger of either format, or the audit log of ``sld generate``. Content decides which it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, Protocol

from sldcore.audit import FORMAT as LOG_FORMAT
from sldcore.audit import read_audit
from sldcore.errors import ConfigurationError
from sldcore.service.ledger.chain import Chain, Entry, Torn, canonical, parsed
from sldcore.service.ledger.errors import reason
from sldcore.service.ledger.jsonl_reading import JsonlReader, entry_of, head_path
from sldcore.service.ledger.sqlite_reading import MAGIC, SqliteReader
from sldcore.service.ledger.verifying import Broken, SealedHead, Verification, verify

Format = Literal["sqlite", "jsonl", "log"]
"""``log`` is the log of ``sld generate --audit``, which is not chained."""

Told = Callable[[Iterable[Entry | Torn]], Iterable[Entry | Torn]]
_LINE_LIMIT: Final = 1 << 20


class Reader(Protocol):
    """Reads records while others append them."""

    @property
    def chained(self) -> bool:
        """Whether records are chained."""
        ...

    def head(self) -> SealedHead | None:
        """Where it says that it ends."""
        ...

    def stored(self) -> tuple[SealedHead | None, Iterable[Entry | Torn]]:
        """Head and entries of one moment, oldest first."""
        ...

    def newest(self, before: int | None = None) -> Iterator[Entry]:
        """Entries, newest first, with numbers below ``before``."""
        ...

    def of_request(self, request: str) -> list[Entry]:
        """The entries of one request, oldest first."""
        ...


class LogReader:
    """The audit log of ``sld generate``: records are numbered as they come, and have no hash."""

    chained: Final = False

    def __init__(self, path: Path) -> None:
        audit = read_audit(path)
        self.torn = audit.torn
        self._entries = [Entry(number, "", canonical(record)) for number, record in enumerate(audit.records)]

    def __len__(self) -> int:
        return len(self._entries)

    def head(self) -> SealedHead | None:
        """A log does not say where it ends."""
        return None

    def stored(self) -> tuple[SealedHead | None, Iterable[Entry | Torn]]:
        """All entries, oldest first."""
        return None, iter(self._entries)

    def newest(self, before: int | None = None) -> Iterator[Entry]:
        """Entries, newest first, with numbers below ``before``."""
        return reversed(self._entries[:before])

    def of_request(self, request: str) -> list[Entry]:
        """A log knows no requests."""
        return []


def open_reader(path: Path) -> Reader:
    """What reads the file at ``path``.

    Raises:
        ConfigurationError: It cannot be read, or holds no records.
        SafetyFailure: It is a damaged ledger.
    """
    kind = format_of(path)
    if kind is None:
        raise ConfigurationError(f"{path} is neither a ledger nor an audit log")
    if kind == "log":
        return LogReader(path)
    return SqliteReader(path) if kind == "sqlite" else JsonlReader(path)


def verify_ledger(reader: Reader, secret: bytes, noted: str | None = None, told: Told = iter) -> Verification:
    """Verify a ledger with the head that it stores.

    Args:
        reader: Reads it; chained.
        secret: Its secret, empty for none.
        noted: A head that was noted elsewhere.
        told: Is handed the entries, and hands them on: it may count them.
    """
    head, entries = reader.stored()
    found = verify(told(entries), Chain(secret), head, noted=noted)
    if found.broken is None and isinstance(reader, SqliteReader) and reader.altered:
        return replace(found, broken=Broken(found.head.count, "altered", reader.altered))
    if head is None and found.broken is None and noted != found.head.hash:
        message = (
            "what says where the ledger ends is missing; whether records are gone at the end can be told only with the last "
            "head that was noted"
        )
        return replace(found, broken=Broken(found.head.count, "head", message))
    return found


def check_format(path: Path, asked: Format) -> None:
    """Check that a file, if there is one, is what the settings say.

    Raises:
        ConfigurationError: It is something else.
    """
    gone = not path.exists() or (asked == "jsonl" and path.is_file() and not path.stat().st_size)
    if not gone and (found := format_of(path)) != asked:
        is_it = {
            "sqlite": "an SQLite database",
            "jsonl": "a ledger of JSON lines",
            "log": "an audit log without a chain",
        }
        raise ConfigurationError(
            f"{path} is {is_it.get(str(found), 'no ledger')}, and the settings ask for {asked}; name another file, or its format"
        )


def format_of(path: Path) -> Format | None:
    """What a file is, by its beginning; None if it holds no records.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(len(MAGIC))
            first = (beginning + file.readline(_LINE_LIMIT)).split(b"\n")[0]
    except OSError as problem:
        raise ConfigurationError(f"cannot read {path}: {reason(problem)}") from None
    if beginning == MAGIC:
        return "sqlite"
    if isinstance(entry_of(first), Entry) or head_path(path).exists():
        return "jsonl"
    record = parsed(first.decode("utf-8", "replace"))
    return "log" if record is not None and record.get("format") == LOG_FORMAT else None
