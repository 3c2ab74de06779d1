"""The ledger as lines of JSON: several processes may append, and a crash tears at most the line that was being written.

A batch is one write, after which ``PATH.head`` is moved; both are on the disk when ``append`` returns. What cannot be written whole is
taken back. After a crash between the two, the head is behind by one batch, which the next one makes up for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from sldcore.errors import ConfigurationError
from sldcore.locked_files import OWNER_ONLY, TIMEOUT, locked, write_whole
from sldcore.service.ledger.chain import EMPTY, Chain, Entry, Head, canonical
from sldcore.service.ledger.errors import Altered, cannot_record, reason
from sldcore.service.ledger.jsonl_reading import (
    JsonlReader,
    head_bytes,
    head_path,
    line_of,
    newest_entries,
    read_head,
)
from sldcore.service.ledger.records import begin_record
from sldcore.service.ledger.verifying import SealedHead
from sldcore.service.ledger.wanted import Wanted, newest_rows


class JsonlLedger:
    """Appends to lines of JSON, and reads them; threads may share one.

    Args:
        path: The file; made if it is not there, readable for its owner only. Missing folders are made.
        secret: Chains the records; empty for none.
        timeout: Seconds to wait for another process that is writing.

    Raises:
        ConfigurationError: The file cannot be made, is no ledger, or was begun with another secret.
        SafetyFailure: The ledger is damaged.
    """

    def __init__(self, path: Path, secret: bytes = b"", *, timeout: float = TIMEOUT) -> None:
        if os.name != "posix":
            raise ConfigurationError(f"this ledger needs POSIX file locks, which '{os.name}' does not have")
        self.path = path
        self._chain = Chain(secret)
        self._timeout = timeout
        self._lock = Lock()
        self._seen = EMPTY
        try:
            create(path, self._chain, timeout=timeout)
        except OSError as problem:
            raise ConfigurationError(f"cannot make the ledger {path}: {reason(problem)}") from None
        except Altered as problem:
            raise cannot_record(path, problem) from None
        first = next(JsonlReader(path).stored()[1], None)
        if not isinstance(first, Entry):
            raise ConfigurationError(f"{path} does not begin as a ledger does; name another file")
        self._chain.check_secret(path, first)
        with self._writing() as file:
            self._seen = self._checked_head(file)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Record a batch; when this returns, it is on the disk.

        Raises:
            SafetyFailure: Nothing of it was recorded. The next call tries anew.
        """
        texts = [canonical(record) for record in records]
        if not texts:
            return
        with self._writing() as file:
            self._seen = _write(file, self.path, self._chain, self._checked_head(file), texts)

    def page(
        self, limit: int, before: int | None = None, wanted: Wanted | None = None
    ) -> list[Mapping[str, Any]]:
        """Records, newest first: at most ``limit``, with numbers below ``before``. Each also has ``seq`` and ``hash``."""
        return newest_rows(JsonlReader(self.path).newest(before), limit, wanted or Wanted())

    def head(self) -> Head:
        """How many records there are, and the hash of the last."""
        return last_head(self.path)

    def close(self) -> None:
        """Nothing is open between two calls."""

    @contextmanager
    def _writing(self) -> Iterator[int]:
        with self._lock:
            try:
                with locked(self.path, create=False, timeout=self._timeout) as file:
                    yield file
            except (OSError, Altered) as problem:
                raise cannot_record(self.path, problem) from problem

    def _checked_head(self, file: int) -> Head:
        """The head that the next record follows: the last line's, once it is sure that none before it is gone."""
        stored = read_head(self.path)
        if stored is None or not self._chain.sealed(stored.head, stored.seal):
            raise Altered(f"{head_path(self.path)} is missing or was changed; see `sld audit verify`")
        entries = newest_entries(file, os.fstat(file).st_size)
        last = next(entries, None)
        if last is None:
            raise Altered("its records are gone; see `sld audit verify`")
        head = Head(last.seq + 1, last.hash)
        known = {each for each in (stored.head, self._seen) if each.count} - {head}
        if any(each.count >= head.count for each in known):
            raise Altered("records are gone at its end; see `sld audit verify`")
        for entry in entries if known else ():
            known.discard(Head(entry.seq + 1, entry.hash))
            if not known:
                break
        if known:
            raise Altered(f"record {min(known).count - 1} is not the one that was written; was it replaced?")
        return head


def last_head(path: Path) -> Head:
    """The head that the last line of a ledger makes.

    Raises:
        SafetyFailure: It cannot be read.
    """
    newest = next(JsonlReader(path).newest(), None)
    return EMPTY if newest is None else Head(newest.seq + 1, newest.hash)


def create(
    path: Path, chain: Chain, continues: Mapping[str, Any] | None = None, *, timeout: float = TIMEOUT
) -> None:
    """Begin a ledger, if there is none.

    Raises:
        OSError: It cannot be made.
        Altered: Its records are gone, and only their head is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, timeout=timeout) as file:
        if os.fstat(file).st_size:
            return
        stored = read_head(path)
        if stored is not None and stored.head != EMPTY:
            raise Altered(f"its records are gone, of which {head_path(path)} knows; see `sld audit verify`")
        _write_head(
            path, chain, EMPTY
        )  # first, so that a ledger with records and without a head is none of ours
        _write(file, path, chain, EMPTY, [canonical(begin_record(chain.fingerprint, continues))])


def _write(file: int, path: Path, chain: Chain, before: Head, texts: list[str]) -> Head:
    """Append records after a head, and move it; if either fails, both are as they were."""
    entries = chain.extended(before, texts)
    size = os.fstat(file).st_size
    torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
    head = Head(entries[-1].seq + 1, entries[-1].hash)
    try:
        write_whole(file, (b"\n" if torn else b"") + b"".join(map(line_of, entries)))
        _write_head(path, chain, head)
    except BaseException:
        with suppress(OSError):  # what stays is a torn line, or records of what was never answered
            os.ftruncate(file, size)
            _write_head(path, chain, before)
        raise
    return head


def _write_head(path: Path, chain: Chain, head: Head) -> None:
    file = os.open(head_path(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY)
    try:
        write_whole(file, head_bytes(SealedHead(head, chain.seal(head))))
    finally:
        os.close(file)
