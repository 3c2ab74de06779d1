"""What detectors and measures leave in a run's folder: a file that says which one it was, and journals of what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sldcore.documents import parse_mapping, to_yaml, write_text_atomically
from sldcore.errors import ConfigurationError
from sldcore.evaluation import journals

_Record = TypeVar("_Record")


def claim_folder(file: Path, name: str, identity: Mapping[str, Any]) -> None:
    """Make the folder of ``file`` that of the instrument with this name and identity, or find that it is already.

    Raises:
        ConfigurationError: it holds what another version or other weights found.
        OSError: it cannot be written.
    """
    wanted = to_yaml({"name": name, **identity})
    if not file.exists():
        write_text_atomically(file, wanted)
        return
    there = file.read_text(encoding="utf-8")
    if parse_mapping(there, source=str(file)) != parse_mapping(wanted, source=name):
        raise ConfigurationError(
            f"{file.parent} holds scores of another version of {name} ({file.name}: {there.split()}); the two must not mix: remove "
            f"that folder to score anew"
        )


def records_in(folder: Path, parse: Callable[[Mapping[str, Any]], _Record | None]) -> Iterator[_Record]:
    """The records of a folder's journals, in the order of the journals' names; lines that are none are passed over.

    Raises:
        ConfigurationError: a journal cannot be read.
    """
    for path in sorted(folder.glob("*.jsonl")):
        for document in journals.read(path):
            record = parse(document)
            if record is not None:
                yield record
