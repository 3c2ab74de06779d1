"""The ledger: a record of every picture, review and refused request, in a chain in which no gap goes unnoticed.

chain            hashes, heads and secrets
verifying        whether a chain is whole, and where it breaks
records          what a record says
wanted           which records are asked for
sqlite, jsonl    two places to keep it, each with its reader (``sqlite_reading``, ``jsonl_reading``)
reading          any ledger or audit log, told apart by its content
rotation         a full ledger is put aside, and a new one continues it

Whoever asks for an answer gets it after its record is on the disk, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sldcore.service.ledger.chain import Head
from sldcore.service.ledger.wanted import Wanted

if TYPE_CHECKING:
    from sldcore.service.settings import AuditSettings

__all__ = ["Head", "Ledger", "Wanted", "open_ledger"]


class Ledger(Protocol):
    """Keeps records. Every method blocks, and may be called by any thread."""

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Record a batch, whole or not at all; when this returns, it is on the disk.

        Raises:
            SafetyFailure: Nothing was recorded, so nothing may be answered. The next call tries anew.
        """
        ...

    def page(
        self, limit: int, before: int | None = None, wanted: Wanted | None = None
    ) -> list[Mapping[str, Any]]:
        """Records, newest first: at most ``limit``, with numbers below ``before``. Each also has ``seq`` and ``hash``.

        Raises:
            SafetyFailure: The ledger cannot be read.
        """
        ...

    def head(self) -> Head:
        """How many records there are, and the hash of the last.

        Raises:
            SafetyFailure: The ledger cannot be read.
        """
        ...

    def close(self) -> None:
        """Let go of files. Appending opens them anew."""
        ...


def open_ledger(settings: AuditSettings) -> Ledger:
    """The ledger that the settings name, begun if it is not there, with a record of this start.

    Raises:
        ConfigurationError: It cannot be made, is something else, or was begun with another secret.
        SafetyFailure: It is damaged, or cannot be written.
    """
    from sldcore.service.ledger.chain import read_secret
    from sldcore.service.ledger.jsonl import JsonlLedger
    from sldcore.service.ledger.reading import check_format
    from sldcore.service.ledger.records import start_record
    from sldcore.service.ledger.sqlite import SqliteLedger

    secret = b"" if settings.secret_file is None else read_secret(settings.secret_file)
    check_format(settings.path, settings.format)
    opened: Ledger = (SqliteLedger if settings.format == "sqlite" else JsonlLedger)(settings.path, secret)
    opened.append([start_record()])
    return opened
