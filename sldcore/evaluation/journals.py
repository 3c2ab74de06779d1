"""Journals: files of one JSON object per line, to which finished work is appended and from which a later start goes on.

One writer appends to a journal at a time; others may read it meanwhile. A process that is killed in the middle of a write leaves a cut
last line, which readers pass over: what it stood for is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sldcore.errors import ConfigurationError


def append(path: Path, documents: Iterable[Mapping[str, Any]]) -> None:
    """Add lines in one write, and return when they are on disk. Missing folders are made.

    Raises:
        OSError: the disk is full, or the file cannot be written; some of the lines may be there.
    """
    lines = b"".join(_line(document) for document in documents)
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if _ends_in_a_cut_line(descriptor):
            lines = b"\n" + lines
        written = 0
        while written < len(lines):
            written += os.write(descriptor, lines[written:])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a journal in the order of writing; lines that are cut or no objects are passed over.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for line in file:
                document = _parsed(line)
                if isinstance(document, dict):
                    yield document
    except OSError as problem:
        raise ConfigurationError(f"cannot read the journal {path}: {problem.strerror or problem}") from None


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _ends_in_a_cut_line(descriptor: int) -> bool:
    end = os.lseek(descriptor, 0, os.SEEK_END)
    return end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
