"""The audit log: one line of JSON for every picture, appended and never changed.

A line is written with one call, ends with a newline, and holds no line break. A process that is killed in the middle leaves
at most one torn line at the end of the file: the next line then starts on a line of its own, and :func:`read_audit` counts
what is torn and reads the rest. Processes and threads may share a log.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sldcore.audit_records import account_record, now, prompt_hash, review_seconds
from sldcore.errors import ConfigurationError, SafetyFailure
from sldcore.locked_files import locked, write_whole
from sldcore.provenance import json_text, report_document
from sldcore.types import Report

FORMAT: Final = 1
"""Version of the layout of a line."""

MAX_BYTES: Final = 64 * 2**20
_PICTURE: Final = ("model", "model_class", "scheduler", "device", "dtype", "versions")
"""What is taken from provenance: nothing that a user wrote, such as a negative prompt."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit log holds: its lines, oldest first, and how many could not be read."""

    records: tuple[Mapping[str, Any], ...]
    torn: int


class AuditLog:
    """An append-only log of what happened to every picture.

    The file is made readable for its owner only. When it would grow beyond ``max_bytes`` it is renamed to ``PATH.1``,
    ``PATH.2``, ... (the highest number is the newest) and a new one is begun; nothing is ever deleted.

    Args:
        path: The file; missing folders are made.
        salt: Put in front of a prompt before it is hashed. Without a secret one, who guesses a prompt can tell that it was used.
        plain_prompts: Also write prompts, and what filters say about them in words, as they are.
        max_bytes: Size at which a new file is begun. A line is never divided.

    Raises:
        ConfigurationError: The file cannot be written, ``max_bytes`` is not positive, or the system has no file locks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        salt: bytes = b"",
        plain_prompts: bool = False,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if max_bytes < 1:
            raise ConfigurationError(f"max_bytes is {max_bytes}; an audit log needs room for a line")
        if os.name != "posix":
            raise ConfigurationError(f"an audit log needs POSIX file locks, which '{os.name}' does not have")
        self.path = Path(path)
        self._salt = bytes(salt)
        self._plain = plain_prompts
        self._max_bytes = max_bytes
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                pass  # opening it is the check
        except OSError as problem:
            raise ConfigurationError(
                f"cannot write the audit log {self.path}: {problem.strerror or problem}"
            ) from None

    def record(self, report: Report, provenance: Mapping[str, Any] | None = None) -> None:
        """Append one picture; when this returns, its line is on the disk.

        Args:
            report: What happened to the picture.
            provenance: As in ``Result.provenance``; model, device and versions are kept, and ``timings`` if it has any.

        Raises:
            SafetyFailure: The line cannot be written.
        """
        line = _line(self._document(report, provenance or {}))
        try:
            self._append(line)
        except OSError as problem:
            raise SafetyFailure(
                f"cannot write the audit log {self.path}: {problem.strerror or problem}. Pictures that leave no trace in it are "
                f"not to be shown"
            ) from problem

    def _append(self, line: bytes) -> None:
        while True:
            with locked(self.path) as file:
                size = os.fstat(file).st_size
                if size and size + len(line) > self._max_bytes:
                    self.path.rename(f"{self.path}.{max(_numbers(self.path), default=0) + 1}")
                    continue
                torn = size and os.pread(file, 1, size - 1) != b"\n"
                write_whole(file, b"\n" + line if torn else line)
                return

    def _document(self, report: Report, provenance: Mapping[str, Any]) -> dict[str, Any]:
        account = report_document(report)
        return {
            "format": FORMAT,
            "time": now(),
            "prompt_sha256": prompt_hash(report.prompt, self._salt),
            **({"prompt": report.prompt} if self._plain else {}),
            **account_record(account, plain=self._plain),
            "timings": {"review": review_seconds(account), **provenance.get("timings", {})},
            **{name: provenance[name] for name in _PICTURE if name in provenance},
        }


def read_audit(path: str | os.PathLike[str]) -> Audit:
    """Everything in an audit log and the files that it has filled before, oldest first.

    Lines that a crash has torn are left out and counted. The log may be written to meanwhile.

    Raises:
        ConfigurationError: There is no such log, or it cannot be read.
    """
    path = Path(path)
    try:
        lines = [line for content in _contents(path) for line in content.split(b"\n") if line]
    except OSError as problem:
        raise ConfigurationError(f"cannot read the audit log {path}: {problem.strerror or problem}") from None
    parsed = [_parsed(line) for line in lines]
    records = tuple(record for record in parsed if record is not None)
    return Audit(records, len(parsed) - len(records))


def _line(document: Mapping[str, Any]) -> bytes:
    # Half a surrogate pair has no UTF-8; the escape that takes its place is JSON's own.
    return json_text(document).encode("utf-8", "backslashreplace") + b"\n"


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):  # not UTF-8 included
        return None
    return document if isinstance(document, dict) and document.get("format") == FORMAT else None


def _contents(path: Path) -> Iterator[bytes]:
    """The files' contents, oldest first. A file that is put aside meanwhile is not read twice."""
    import fcntl

    try:
        current = path.open("rb")
    except FileNotFoundError:
        numbers = sorted(_numbers(path)) if path.parent.is_dir() else []
        if not numbers:
            raise
        # Just put aside, or the crash came between this and the next line.
        yield from (Path(f"{path}.{number}").read_bytes() for number in numbers)
        return
    with current:
        own = os.fstat(current.fileno()).st_ino
        for number in sorted(_numbers(path)):
            with Path(f"{path}.{number}").open("rb") as earlier:
                if os.fstat(earlier.fileno()).st_ino == own:
                    break
                yield earlier.read()
        fcntl.flock(current, fcntl.LOCK_SH)  # no line is being written while it is read
        yield current.read()


def _numbers(path: Path) -> list[int]:
    """Numbers of the files that a log has filled."""
    name = re.compile(re.escape(path.name) + r"\.([1-9][0-9]*)")
    return [int(match[1]) for each in path.parent.iterdir() if (match := name.fullmatch(each.name))]
