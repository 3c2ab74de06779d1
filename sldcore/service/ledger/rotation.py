"""A ledger is put aside, and a new one begun that names its head: so the chains connect."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import Any

from sldcore.errors import ConfigurationError
from sldcore.locked_files import TIMEOUT, locked
from sldcore.service.ledger import jsonl, sqlite
from sldcore.service.ledger.chain import Chain, Entry, Head
from sldcore.service.ledger.errors import Altered, reason
from sldcore.service.ledger.jsonl_reading import head_path
from sldcore.service.ledger.reading import format_of, open_reader
from sldcore.service.ledger.sqlite_reading import connect


def rotate(path: Path, archive: Path, secret: bytes = b"") -> Head:
    """Rename a ledger that no service uses to ``archive``, and begin a new one at ``path`` that continues it.

    Returns:
        The head of what was put aside. The new ledger's first record has it, with the archive's name.

    Raises:
        ConfigurationError: It is in use or no ledger, the secret is another one, or ``archive`` exists.
        SafetyFailure: It is damaged.
    """
    kind = format_of(path)
    if kind not in ("sqlite", "jsonl"):
        raise ConfigurationError(f"{path} is no ledger; an audit log puts itself aside")
    if archive.exists() or head_path(archive).exists():
        raise ConfigurationError(f"{archive} exists; name a new file to put the ledger aside")
    chain = Chain(secret)
    reader = open_reader(path)
    stored, entries = reader.stored()
    first = next(iter(entries), None)
    chain.check_secret(path, first if isinstance(first, Entry) else None)
    if stored is None or not chain.sealed(stored.head, stored.seal):
        raise ConfigurationError(
            f"{path} does not say where it ends, or that was changed; see `sld audit verify`"
        )
    del entries  # which keep the database open
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        return (_rotate_sqlite if kind == "sqlite" else _rotate_jsonl)(path, archive, chain)
    except (OSError, sqlite3.Error, Altered) as problem:
        raise ConfigurationError(f"cannot put the ledger {path} aside: {reason(problem)}") from None


def _rotate_sqlite(path: Path, archive: Path, chain: Chain) -> Head:
    with closing(connect(path, read_only=False, timeout=0.5)) as connection:
        try:
            connection.execute(
                "PRAGMA journal_mode = DELETE"
            )  # needs the database for itself, and makes it one file
        except sqlite3.OperationalError as problem:
            raise Altered(f"{problem}. Stop the service that uses it first") from None
        count, hash = connection.execute("SELECT count, hash FROM head").fetchone()
    head = Head(count, hash)
    new = path.with_name(f".{path.name}.{token_hex(4)}.new")
    try:
        sqlite.create(new, chain, _continues(archive, head))
        os.link(path, archive)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return head


def _rotate_jsonl(path: Path, archive: Path, chain: Chain) -> Head:
    with locked(path, create=False, timeout=TIMEOUT):
        head = jsonl.last_head(path)
        head_path(path).rename(head_path(archive))
        path.rename(archive)
        jsonl.create(path, chain, _continues(archive, head))
    return head


def _continues(archive: Path, head: Head) -> dict[str, Any]:
    return {"file": archive.name, "count": head.count, "hash": head.hash}
