"""A chain of records: each hash is over the one before, the record's number, and the record.

    hash(n) = H(mark || hash(n - 1) || n || record),   hash(-1) = 32 zero bytes

H is HMAC-SHA256 with the operator's secret, else SHA-256. Whoever changes, removes, inserts or moves a record must make all later
hashes anew; with a secret, that needs the secret. What is gone at the end leaves no gap, so the number of records and the last hash
are kept as well, under a seal of the same kind.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from sldcore.errors import ConfigurationError
from sldcore.provenance import json_text

_RECORD: Final = b"sldcore ledger record 1\0"
_HEAD: Final = b"sldcore ledger head 1\0"
_SECRET: Final = b"sldcore ledger secret 1\0"
SECRET_BYTES: Final = 16
"""The shortest secret that is taken."""

_SECRET_LIMIT: Final = 4096
HASH: Final = re.compile(r"[0-9a-f]{64}")
"""The form of a hash."""


@dataclass(frozen=True, slots=True, order=True)
class Head:
    """How many records there are, and the hash of the last: what to note elsewhere."""

    count: int
    hash: str


EMPTY: Final = Head(0, "0" * 64)
"""The head of a chain without records."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored record: its number from 0, its hash, and its text as it was hashed."""

    seq: int
    hash: str
    text: str

    def row(self) -> dict[str, Any]:
        """The record with ``seq`` and ``hash``; of a text that is no record, only these and ``unreadable``."""
        record = parsed(self.text)
        return {"seq": self.seq, "hash": self.hash, **({"unreadable": True} if record is None else record)}


@dataclass(frozen=True, slots=True)
class Torn:
    """A line that is no entry, as a crash leaves at the end of what it was writing."""


@dataclass(frozen=True, slots=True)
class Chain:
    """How hashes are made: with the operator's secret, or without any (empty)."""

    secret: bytes = b""

    def link(self, before: str, seq: int, text: str) -> str:
        """The hash of record ``seq``, whose predecessor has the hash ``before``."""
        parts = (_RECORD, bytes.fromhex(before), seq.to_bytes(8, "big"), text.encode("utf-8", "replace"))
        return self._hash(b"".join(parts))

    def extended(self, head: Head, texts: list[str]) -> list[Entry]:
        """Entries for new records after a head."""
        entries: list[Entry] = []
        for text in texts:
            head = Head(head.count + 1, self.link(head.hash, head.count, text))
            entries.append(Entry(head.count - 1, head.hash, text))
        return entries

    def seal(self, head: Head) -> str:
        """What shows that a stored head was written by who has the secret."""
        return self._hash(_HEAD + head.count.to_bytes(8, "big") + bytes.fromhex(head.hash))

    def sealed(self, head: Head, seal: str) -> bool:
        """Whether a stored head bears the right seal."""
        if not (0 <= head.count < 2**63 and HASH.fullmatch(head.hash)):
            return False
        return hmac.compare_digest(self.seal(head).encode(), seal.encode("utf-8", "replace"))

    @property
    def fingerprint(self) -> str | None:
        """What tells one secret from another and gives none away; None without one."""
        return self._hash(_SECRET)[:16] if self.secret else None

    def check_secret(self, path: Path, first: Entry | None) -> None:
        """Check that a ledger, whose first entry this is, was begun with this secret.

        Raises:
            ConfigurationError: It was begun with another one, or with none.
        """
        if first is not None and self.is_other(first):
            begun = (parsed(first.text) or {}).get("secret")
            how = (
                "without a secret"
                if begun is None
                else "with another secret"
                if self.secret
                else "with a secret"
            )
            raise ConfigurationError(
                f"the ledger {path} was begun {how}; name a new file, or give the right secret"
            )

    def is_other(self, first: Entry) -> bool:
        """Whether a ledger's first entry says that it was begun with another secret, or with none."""
        record = parsed(first.text) or {}
        return record.get("kind") == "begin" and record.get("secret") != self.fingerprint

    def _hash(self, content: bytes) -> str:
        if self.secret:
            return hmac.digest(self.secret, content, "sha256").hex()
        return sha256(content).hexdigest()


def canonical(record: Mapping[str, Any]) -> str:
    """A record as text: one for equal records, ASCII, without line breaks; what is no finite number is null."""
    plain = json.loads(json_text(record))
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parsed(text: str) -> dict[str, Any] | None:
    """The record of a text, or None if it is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_secret(path: Path) -> bytes:
    """The secret in a file, without the line end that editors add.

    Raises:
        ConfigurationError: It cannot be read, or is too short to be one.
    """
    try:
        with path.open("rb") as file:
            secret = file.read(_SECRET_LIMIT + 1).rstrip(b"\r\n")
    except OSError as problem:
        raise ConfigurationError(
            f"cannot read the ledger's secret {path}: {problem.strerror or problem}"
        ) from None
    if not SECRET_BYTES <= len(secret) <= _SECRET_LIMIT:
        raise ConfigurationError(
            f"the ledger's secret {path} has {len(secret)} bytes; {SECRET_BYTES} to {_SECRET_LIMIT} are needed "
            f"(`openssl rand -hex 32 > {path}` makes one)"
        )
    return secret
