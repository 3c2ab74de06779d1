"""The catalogue: what can be named, who provides it, and why something cannot be had.

The core's own contributions are found without looking at plugins. Only a name that the core does not have makes the
plugins load. Where they come from is not known here: :mod:`sldcore.plugins` is one source, tests bring others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

from pydantic import ValidationError

import sldcore
from sldcore.contributions import Contribution
from sldcore.documents import describe_invalid
from sldcore.errors import PluginError, listed, nearest

C = TypeVar("C", bound=Contribution)


@dataclass(frozen=True, slots=True)
class Provider:
    """Who contributes: the plugin's name, and the distribution that it came with (empty for a local file)."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution or self.plugin} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class Entry:
    """One contribution and its provider."""

    contribution: Contribution
    provider: Provider


class Source(Protocol):
    """Where contributions come from beside the core."""

    def with_files(self, files: Sequence[Path]) -> Source:
        """This source and plugin files without a distribution.

        Raises:
            PluginError: a file cannot be used; only files that were asked for are given here.
        """
        ...

    def require(self, requirements: Sequence[str]) -> None:
        """Check that distributions are installed in these versions.

        Raises:
            PluginError: one is not; the message says which is, and the pip command.
        """
        ...

    def entries(self, kind: type[Contribution]) -> Sequence[Entry]:
        """All that can be used, of one kind; loads what has to be loaded. Names that several provide are left out."""
        ...

    def why_not(self, kind: type[Contribution], name: str) -> str:
        """Why ``name`` cannot be had: broken, disabled or ambiguous, and what to do; empty if nobody is known to have it."""
        ...


class Catalogue:
    """Contributions by kind and name: the core's, then those of a source."""

    def __init__(self, core: Sequence[Entry], source: Source | None = None) -> None:
        self._core = {(type(entry.contribution), entry.contribution.name): entry for entry in core}
        self._source = source

    def with_files(self, files: Sequence[Path]) -> Catalogue:
        """This catalogue and the contributions of plugin files.

        Raises:
            PluginError: a file cannot be used.
        """
        if not files:
            return self
        if self._source is None:
            raise PluginError(f"plugins are off here, and {listed(map(str, files))} is asked for")
        return Catalogue(list(self._core.values()), self._source.with_files(files))

    def require(self, requirements: Sequence[str]) -> None:
        """Check that distributions are installed in these versions.

        Raises:
            PluginError: one is not, or plugins are off.
        """
        if requirements and self._source is None:
            raise PluginError(f"plugins are off here, and {listed(requirements)} is required")
        if requirements and self._source is not None:
            self._source.require(requirements)

    def find(self, kind: type[C], name: str) -> C:
        """The contribution of this kind and name.

        Raises:
            PluginError: it is missing, broken or disabled; the message says which.
        """
        return cast(C, self.entry(kind, name).contribution)

    def entry(self, kind: type[Contribution], name: str) -> Entry:
        """As :meth:`find`, with the provider."""
        if own := self._core.get((kind, name)):
            return own
        entries = {entry.contribution.name: entry for entry in self._plugged(kind)}
        if name in entries:
            return entries[name]
        if self._source is not None and (reason := self._source.why_not(kind, name)):
            raise PluginError(f"{kind.kind} '{name}' cannot be used: {reason}")
        names = [each.contribution.name for each in self.entries(kind)]
        raise PluginError(
            f"no {kind.kind} is called '{name}'{nearest(name, names)} (available: {listed(names)}). A plugin that "
            f"provides it is installed with pip; `sld plugins list` shows what is installed"
        )

    def entries(self, kind: type[Contribution]) -> list[Entry]:
        """All that can be used of one kind, the core's first, then by name."""
        core = [entry for (own, _), entry in self._core.items() if own is kind]
        return core + sorted(self._plugged(kind), key=lambda entry: entry.contribution.name)

    def _plugged(self, kind: type[Contribution]) -> Sequence[Entry]:
        return self._source.entries(kind) if self._source is not None else ()

    def core_entries(self, kind: type[Contribution]) -> list[Entry]:
        """The core's own of one kind; no plugin is looked at."""
        return [entry for (own, _), entry in self._core.items() if own is kind]


_chosen: Final[ContextVar[Catalogue | None]] = ContextVar("sldcore_catalogue", default=None)
_make: Callable[[], Catalogue] = sldcore.default_catalogue


def current() -> Catalogue:
    """The catalogue in use here: the one of an enclosing :func:`using`, else the process's own, made at first use."""
    return _chosen.get() or _of_process()


@contextmanager
def using(catalogue: Catalogue) -> Iterator[Catalogue]:
    """Use another catalogue inside the ``with`` block: a local plugin, or a test's own contributions.

    Engines keep the catalogue in which they were made. A thread that is started inside the block does not see it; run it in
    ``contextvars.copy_context()``, or make the engine first.
    """
    token = _chosen.set(catalogue)
    try:
        yield catalogue
    finally:
        _chosen.reset(token)


def set_default(make: Callable[[], Catalogue]) -> None:
    """Say how the process's catalogue is made, if not by :func:`sldcore.default_catalogue`."""
    global _make
    _make = make
    _of_process.cache_clear()


@cache
def _of_process() -> Catalogue:
    return _make()


def checked_options(contribution: Contribution, given: Mapping[str, Any]) -> Any:
    """``given`` as the contribution's own options model, completed.

    Raises:
        PluginError: an option that the contribution does not have, or a value that it does not take.
    """
    try:
        return contribution.options.model_validate(dict(given))
    except ValidationError as invalid:
        raise PluginError(
            describe_invalid(f"options of {contribution.kind} '{contribution.name}'", invalid)
        ) from None
