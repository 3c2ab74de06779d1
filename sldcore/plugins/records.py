"""What is known of each plugin: how it was announced, what became of it, and what is wrong with it in one line."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from sldcore.catalogue import Provider

_LONGEST: Final = 400
_NOT_THEIRS: Final = (Path(__file__).parent, Path(importlib.__file__).parent)


class Status(StrEnum):
    """What became of a plugin.

    ``broken``: nothing of it is used. ``duplicate``: names that somebody else has are not used, its others are.
    ``not loaded``: its manifest says what it contributes, and nothing of it was needed so far.
    """

    OK = "ok"
    BROKEN = "broken"
    DISABLED = "disabled"
    DUPLICATE = "duplicate"
    NOT_LOADED = "not loaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A plugin as its distribution announces it, or as a file that was asked for; nothing of it has been imported.

    ``file`` is set for plugin files. ``problem`` says why the announcement itself cannot be used.
    """

    plugin: str
    module: str
    distribution: str = ""
    version: str = ""
    file: Path | None = None
    problem: str = ""

    @property
    def provider(self) -> Provider:
        """Who contributes, for entries of the catalogue."""
        return Provider(self.plugin, self.distribution, self.version)

    def __str__(self) -> str:
        came_with = f"{self.distribution} {self.version}".strip() or str(self.file or "")
        return f"plugin '{self.plugin}' ({came_with})" if came_with else f"plugin '{self.plugin}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One plugin for listings.

    Attributes:
        plugin: its name, which ``SLD_PLUGINS`` uses.
        module: what is imported.
        distribution: what pip installed; empty for a plugin file.
        version: of the distribution.
        status: what became of it.
        error: what is wrong and what to do; empty if nothing is.
        import_seconds: how long the import of its module took; None if it was not imported.
        contributions: names by kind; of a broken plugin those that could be told.
        manifest: whether it ships a static manifest.
        api: the version of the contract that it asks for, None if unknown.
    """

    plugin: str
    module: str
    distribution: str
    version: str
    status: Status
    error: str = ""
    import_seconds: float | None = None
    contributions: Mapping[str, tuple[str, ...]]
    manifest: bool = False
    api: int | None = None

    @property
    def bad(self) -> bool:
        """Whether strict mode refuses it."""
        return self.status in (Status.BROKEN, Status.DUPLICATE)

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "plugin": self.plugin,
            "module": self.module,
            "distribution": self.distribution,
            "version": self.version,
            "status": self.status.value,
            "error": self.error,
            "import_ms": None if self.import_seconds is None else round(self.import_seconds * 1000, 1),
            "contributions": {kind: list(names) for kind, names in self.contributions.items()},
            "manifest": self.manifest,
            "api": self.api,
        }


def one_line(text: str) -> str:
    """``text`` without line breaks and control characters, shortened: other people's messages go to a terminal."""
    plain = " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 3]}..."


def describe(problem: BaseException) -> str:
    """Type, message and place of an exception that somebody else's code raised."""
    try:
        message = str(problem)
    except Exception:  # an exception whose text cannot be made is still to be reported
        message = "(its message cannot be read)"
    theirs = [
        frame
        for frame in traceback.extract_tb(problem.__traceback__)
        if not frame.filename.startswith("<") and Path(frame.filename).parent not in _NOT_THEIRS
    ]
    place = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    return one_line(f"{type(problem).__name__}: {message}" if message else type(problem).__name__) + place
