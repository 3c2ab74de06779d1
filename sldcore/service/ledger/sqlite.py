"""The ledger as an SQLite database: several processes may append, and a batch is recorded whole or not at all.

Every batch is one transaction that reads the head, adds the records after it, and moves the head; it is on the disk when ``append``
returns (WAL, synchronous=FULL). Triggers refuse to change or remove anything, which protects from mistakes; from intent, the chain does.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import Any

from sldcore.errors import ConfigurationError, SafetyFailure
from sldcore.locked_files import OWNER_ONLY, TIMEOUT
from sldcore.service.ledger.chain import EMPTY, Chain, Head, canonical
from sldcore.service.ledger.errors import Altered, cannot_record, reason
from sldcore.service.ledger.records import begin_record
from sldcore.service.ledger.sqlite_reading import (
    SqliteReader,
    check_layout,
    connect,
    entry_at,
    lay_out,
    stored_head,
)
from sldcore.service.ledger.wanted import Wanted, newest_rows


class SqliteLedger:
    """Appends to a database, and reads it; threads may share one.

    Args:
        path: The file; made if it is not there, readable for its owner only. Missing folders are made.
        secret: Chains the records; empty for none.
        timeout: Seconds to wait for another process that is writing.

    Raises:
        ConfigurationError: The file cannot be made, is no ledger, or was begun with another secret.
        SafetyFailure: The ledger is damaged.
    """

    def __init__(self, path: Path, secret: bytes = b"", *, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._chain = Chain(secret)
        self._timeout = timeout
        self._lock = Lock()
        self._connection: sqlite3.Connection | None = None
        self._place: tuple[int, int] | None = None
        self._seen = EMPTY
        try:
            if not path.exists():
                create(path, self._chain)
            self._chain.check_secret(path, next(SqliteReader(path).stored()[1], None))
        except OSError as problem:
            raise ConfigurationError(f"cannot make the ledger {path}: {reason(problem)}") from None
        with self._writing() as connection:
            self._seen = self._checked_head(connection)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Record a batch; when this returns, it is on the disk.

        Raises:
            SafetyFailure: Nothing of it was recorded. The next call tries anew.
        """
        texts = [canonical(record) for record in records]
        if not texts:
            return
        with self._writing() as connection:
            head = self._checked_head(connection)
            entries = self._chain.extended(head, texts)
            rows = [(entry.seq, entry.hash, entry.text) for entry in entries]
            connection.executemany("INSERT INTO records (seq, hash, record) VALUES (?, ?, ?)", rows)
            head = Head(entries[-1].seq + 1, entries[-1].hash)
            connection.execute(
                "UPDATE head SET count = ?, hash = ?, seal = ?",
                (head.count, head.hash, self._chain.seal(head)),
            )
            connection.execute("COMMIT")
            self._seen = head

    def page(
        self, limit: int, before: int | None = None, wanted: Wanted | None = None
    ) -> list[Mapping[str, Any]]:
        """Records, newest first: at most ``limit``, with numbers below ``before``. Each also has ``seq`` and ``hash``."""
        return newest_rows(SqliteReader(self.path).newest(before), limit, wanted or Wanted())

    def head(self) -> Head:
        """How many records there are, and the hash of the last."""
        stored = SqliteReader(self.path).head()
        if stored is None:
            raise SafetyFailure(f"the ledger {self.path} does not say where it ends")
        return stored.head

    def close(self) -> None:
        """Close the database; appending opens it anew."""
        with self._lock:
            self._disconnect()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction in which nobody else writes, on the file that is found at the path; undone if it is not committed."""
        with self._lock:
            try:
                connection = self._connected()
                connection.execute("BEGIN IMMEDIATE")
                if self._place != _place(self.path):
                    raise Altered("the file was removed or replaced while it was in use")
                yield connection
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except (sqlite3.Error, OSError, Altered) as problem:
                self._disconnect()  # which undoes what was not committed; the next call starts afresh
                raise cannot_record(self.path, problem) from problem

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._place != _place(self.path):
            self._disconnect()
        if self._connection is None:
            place = _place(self.path)
            connection = connect(self.path, read_only=False, timeout=self._timeout)
            try:
                if altered := check_layout(connection, self.path):
                    raise Altered(altered)
                connection.execute("PRAGMA synchronous = FULL")
            except ConfigurationError as problem:  # it was a ledger when it was opened first
                connection.close()
                raise Altered(str(problem)) from None
            except BaseException:
                connection.close()
                raise
            self._connection, self._place = connection, place
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _checked_head(self, connection: sqlite3.Connection) -> Head:
        """The head that the next record follows: sealed, at the end of the records, and after all that was recorded here."""
        stored = stored_head(connection)
        if stored is None or not self._chain.sealed(stored.head, stored.seal):
            raise Altered("what says where it ends is missing or was changed; see `sld audit verify`")
        head = stored.head
        last = connection.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetchone()
        if last != (head.count - 1, head.hash):
            raise Altered("it does not end where it says; see `sld audit verify`")
        if self._seen.count:
            ours = entry_at(connection, self._seen.count - 1)
            if ours is None or ours.hash != self._seen.hash:
                raise Altered(
                    f"record {self._seen.count - 1} is not the one that was written; was it replaced?"
                )
        return head


def create(path: Path, chain: Chain, continues: Mapping[str, Any] | None = None) -> None:
    """Make a ledger with its first record; it appears at once and whole. If another process is quicker, its ledger stays.

    Raises:
        OSError: It cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, OWNER_ONLY))
    try:
        with closing(connect(temporary, read_only=False)) as connection:
            (entry,) = chain.extended(EMPTY, [canonical(begin_record(chain.fingerprint, continues))])
            head = Head(1, entry.hash)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            lay_out(connection)
            connection.execute("INSERT INTO records VALUES (?, ?, ?)", (entry.seq, entry.hash, entry.text))
            connection.execute(
                "INSERT INTO head VALUES (1, ?, ?, ?)", (head.count, head.hash, chain.seal(head))
            )
            connection.execute("COMMIT")
        with suppress(FileExistsError):
            os.link(temporary, path)
    except sqlite3.Error as problem:
        raise OSError(str(problem)) from problem
    finally:
        temporary.unlink(missing_ok=True)


def _place(path: Path) -> tuple[int, int]:
    there = path.stat()
    return there.st_dev, there.st_ino
