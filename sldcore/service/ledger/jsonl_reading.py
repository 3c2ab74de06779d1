"""The ledger as lines of JSON: their layout, the file that says where they end, and reading them while others write.

A line is ``{"seq":N,"hash":"...","record":{...}}``, the record exactly as it was hashed. ``PATH.head`` has the number of records and
the last hash under a seal, so that lines that are gone at the end are missed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sldcore.errors import SafetyFailure
from sldcore.service.ledger.chain import HASH, Entry, Head, Torn, parsed
from sldcore.service.ledger.errors import reason
from sldcore.service.ledger.verifying import SealedHead

_LINE: Final = re.compile(rf'\{{"seq":([0-9]{{1,18}}),"hash":"({HASH.pattern})","record":(\{{.*\}})\}}')
_BLOCK: Final = 1 << 16
HEAD_BYTES: Final = 256
"""Size of ``PATH.head``, whatever it says: it is written in place, with one call."""


def head_path(path: Path) -> Path:
    """The file that says where a ledger ends."""
    return path.with_name(f"{path.name}.head")


def line_of(entry: Entry) -> bytes:
    """An entry as a line."""
    return f'{{"seq":{entry.seq},"hash":"{entry.hash}","record":{entry.text}}}\n'.encode()


def entry_of(line: bytes) -> Entry | Torn:
    """The entry of a line."""
    try:
        match = _LINE.fullmatch(line.decode())
    except UnicodeDecodeError:
        return Torn()
    if match is None or parsed(match[3]) is None:
        return Torn()
    return Entry(int(match[1]), match[2], match[3])


def head_bytes(sealed: SealedHead) -> bytes:
    """A head as the content of its file."""
    document = {"count": sealed.head.count, "hash": sealed.head.hash, "seal": sealed.seal}
    return json.dumps(document).ljust(HEAD_BYTES - 1).encode() + b"\n"


def read_head(path: Path) -> SealedHead | None:
    """The head of the ledger at ``path``; None if there is no such file. What cannot be read is a head that bears no seal.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        with head_path(path).open("rb") as file:
            content = parsed(file.read(HEAD_BYTES).decode("utf-8", "replace")) or {}
    except FileNotFoundError:
        return None
    count, hash, seal = (content.get(name) for name in ("count", "hash", "seal"))
    if isinstance(count, int) and isinstance(hash, str) and isinstance(seal, str):
        return SealedHead(Head(count, hash), seal)
    return SealedHead(Head(0, ""), "")


def newest_entries(file: int, end: int) -> Iterator[Entry]:
    """The entries of an open file up to byte ``end``, newest first; lines that are none are left out."""
    rest = b""
    while end > 0:
        start = max(end - _BLOCK, 0)
        lines = (os.pread(file, end - start, start) + rest).split(b"\n")
        rest, end = lines[0], start
        for line in reversed(lines[1:] if start else lines):
            if isinstance(entry := entry_of(line), Entry):
                yield entry


class JsonlReader:
    """Reads a ledger that is lines of JSON.

    Raises:
        SafetyFailure: It cannot be read.
    """

    chained: Final = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def head(self) -> SealedHead | None:
        """Where the ledger says that it ends."""
        try:
            return read_head(self.path)
        except OSError as problem:
            raise SafetyFailure(f"cannot read {head_path(self.path)}: {reason(problem)}") from None

    def stored(self) -> tuple[SealedHead | None, Iterator[Entry | Torn]]:
        """Head and lines, oldest first. The head is read first: lines that are written meanwhile only follow it."""
        return self.head(), self._lines()

    def newest(self, before: int | None = None) -> Iterator[Entry]:
        """Entries, newest first, with numbers below ``before``."""
        try:
            with self.path.open("rb") as file:
                end = os.fstat(file.fileno()).st_size
                for entry in newest_entries(file.fileno(), end):
                    if before is None or entry.seq < before:
                        yield entry
        except OSError as problem:
            raise self._unreadable(problem) from None

    def of_request(self, request: str) -> list[Entry]:
        """The entries of one request, oldest first."""
        entries = (line for line in self._lines() if isinstance(line, Entry) and request in line.text)
        return [entry for entry in entries if entry.row().get("request") == request]

    def _lines(self) -> Iterator[Entry | Torn]:
        """Lines up to where the file ended when the first was read; a last one that is still being written is no line yet."""
        try:
            with self.path.open("rb") as file:
                left = os.fstat(file.fileno()).st_size
                while left > 0 and (line := file.readline(left)):
                    left -= len(line)
                    if line != b"\n":
                        yield entry_of(line.rstrip(b"\n"))
        except OSError as problem:
            raise self._unreadable(problem) from None

    def _unreadable(self, problem: OSError) -> SafetyFailure:
        return SafetyFailure(f"cannot read the ledger {self.path}: {reason(problem)}")
