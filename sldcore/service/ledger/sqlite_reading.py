"""The ledger's database: its layout, and reading it, which does not block who writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from sldcore.errors import ConfigurationError, SafetyFailure
from sldcore.service.ledger.chain import Entry, Head
from sldcore.service.ledger.errors import Altered, reason
from sldcore.service.ledger.verifying import SealedHead

MAGIC: Final = b"SQLite format 3\0"
APPLICATION: Final = 0x534C444C
"""SQLite's application id of a ledger: ``SLDL``."""

SCHEMA_VERSION: Final = 1
_KEPT: Final = "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
_OBJECTS: Final = {
    "records": "CREATE TABLE records (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, record TEXT NOT NULL) STRICT",
    "head": "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL, hash TEXT NOT NULL, "
    "seal TEXT NOT NULL) STRICT",
    "by_request": "CREATE INDEX by_request ON records (json_extract(record, '$.request'))",
    "no_update": f"CREATE TRIGGER no_update BEFORE UPDATE ON records {_KEPT}",
    "no_delete": f"CREATE TRIGGER no_delete BEFORE DELETE ON records {_KEPT}",
    "no_replacing": "CREATE TRIGGER no_replacing BEFORE INSERT ON records "
    f"WHEN EXISTS (SELECT 1 FROM records WHERE seq = NEW.seq) {_KEPT}",
    "one_head": f"CREATE TRIGGER one_head BEFORE INSERT ON head WHEN EXISTS (SELECT 1 FROM head) {_KEPT}",
    "head_stays": f"CREATE TRIGGER head_stays BEFORE DELETE ON head {_KEPT}",
    "head_grows": f"CREATE TRIGGER head_grows BEFORE UPDATE ON head WHEN NEW.count <= OLD.count {_KEPT}",
}


def lay_out(connection: sqlite3.Connection) -> None:
    """Make tables, index and triggers in an empty database."""
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    for statement in _OBJECTS.values():
        connection.execute(statement)


def check_layout(connection: sqlite3.Connection, path: Path) -> str | None:
    """Check that a database is a ledger.

    Returns:
        What is not as it was made, if its tables are: triggers that protect it, or its index.

    Raises:
        ConfigurationError: It is another database, or a ledger of another version.
        Altered: Its tables are not as they were made.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise ConfigurationError(f"{path} is a database, but no ledger; name another file")
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"the ledger {path} has layout {version}, and this version reads {SCHEMA_VERSION}"
        )
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
    names = found.keys() | _OBJECTS.keys()
    wrong = sorted(str(name) for name in names if found.get(name) != _OBJECTS.get(name))
    message = f"its tables or triggers were altered: {', '.join(wrong)}"
    if {"records", "head"} & set(wrong):
        raise Altered(message)
    return message if wrong else None


def stored_head(connection: sqlite3.Connection) -> SealedHead | None:
    """The head as it is stored."""
    row = connection.execute("SELECT count, hash, seal FROM head").fetchone()
    return None if row is None else SealedHead(Head(row[0], row[1]), row[2])


def entry_at(connection: sqlite3.Connection, seq: int) -> Entry | None:
    """One record."""
    row = connection.execute("SELECT seq, hash, record FROM records WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else Entry(*row)


class SqliteReader:
    """Reads a ledger that is a database; every call sees one state of it.

    ``altered`` says what protects it no longer, if anything does not.

    Raises:
        ConfigurationError: It cannot be opened, or is no ledger.
        SafetyFailure: It is damaged, or its tables were altered.
    """

    chained: Final = True

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as connection:
            self.altered = check_layout(connection, path)

    def head(self) -> SealedHead | None:
        """Where the ledger says that it ends."""
        with self._open() as connection:
            return stored_head(connection)

    def stored(self) -> tuple[SealedHead | None, Iterator[Entry]]:
        """Head and entries, oldest first, of one moment."""
        rows = self._entries("ORDER BY seq", ())
        head = next(rows)
        if isinstance(head, Entry):
            raise SafetyFailure(f"{self.path} has no head")
        return head, (row for row in rows if isinstance(row, Entry))

    def newest(self, before: int | None = None) -> Iterator[Entry]:
        """Entries, newest first, with numbers below ``before``."""
        where = "" if before is None else "WHERE seq < ? "
        rows = self._entries(where + "ORDER BY seq DESC", () if before is None else (before,))
        return (row for row in rows if isinstance(row, Entry))

    def of_request(self, request: str) -> list[Entry]:
        """The entries of one request, oldest first."""
        rows = self._entries("WHERE json_extract(record, '$.request') = ? ORDER BY seq", (request,))
        return [row for row in rows if isinstance(row, Entry)]

    def _entries(self, which: str, values: tuple[object, ...]) -> Iterator[Entry | SealedHead | None]:
        """The head, then entries."""
        with self._open() as connection:
            connection.execute("BEGIN")
            yield stored_head(connection)
            for row in connection.execute(f"SELECT seq, hash, record FROM records {which}", values):
                yield Entry(*row)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(connect(self.path, read_only=True)) as connection:
                yield connection
        except (sqlite3.Error, Altered) as problem:
            raise SafetyFailure(f"cannot read the ledger {self.path}: {reason(problem)}") from problem


def connect(path: Path, *, read_only: bool, timeout: float = 5.0) -> sqlite3.Connection:
    """A connection to a database that exists; transactions are begun by hand."""
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = lambda content: content.decode("utf-8", "replace")
    return connection
