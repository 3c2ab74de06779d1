"""Plugins as a source of contributions: found when needed, each loaded once and isolated, with a record of what became of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, RLock
from typing import Final, Self

from sldcore.catalogue import Entry
from sldcore.contributions import Contribution
from sldcore.errors import PluginError
from sldcore.plugins.claims import Claims, claims_of
from sldcore.plugins.discovery import VARIABLE, Selection, discover
from sldcore.plugins.loader import Outcome
from sldcore.plugins.loading import Plugin, plugin_of_file
from sldcore.plugins.reasons import counted, not_in_use, perhaps_in, unknown_names
from sldcore.plugins.records import Record, Status
from sldcore.plugins.requirements import KNOWN, check_requirements, installed_version

_log: Final = logging.getLogger(__name__)
_warned: Final = Event()


class Plugins:
    """The installed plugins that are let in, and the plugin files that were asked for.

    Nothing is looked for before it is needed. Plugins with a manifest are loaded only for a kind that it names.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        local: Sequence[Plugin] = (),
        strict: bool = False,
        core: Sequence[Entry] | None = None,
        installed: Sequence[Plugin] | None = None,
    ) -> None:
        self._selection = selection
        self._local = tuple(local)
        self._strict = strict
        self._core = core
        self._installed = installed
        self._lock = RLock()

    @classmethod
    def from_environment(
        cls,
        selection: str | None = None,
        local: Sequence[Path] = (),
        strict: bool = False,
        core: Sequence[Entry] | None = None,
    ) -> Self:
        """The plugins of this Python environment.

        Args:
            selection: ``none``, names (only these) or ``-name`` (all but these); ``SLD_PLUGINS`` if None.
            local: plugin files that the user asked for.
            strict: give nothing while any plugin is bad.
            core: contributions whose names no plugin can take; those of :mod:`sldcore.builtin` if None.

        Raises:
            PluginError: ``selection`` makes no sense.
        """
        text = os.environ.get(VARIABLE) if selection is None else selection
        files = [plugin_of_file(path) for path in dict.fromkeys(local)]
        return cls(Selection.parse(text), local=files, strict=strict, core=core)

    def with_files(self, files: Sequence[Path]) -> Plugins:
        """These plugins, shared, and plugin files; a file that is among them already is loaded again only if it was edited.

        Raises:
            PluginError: a file is missing, broken or disabled.
        """
        known = {plugin.announced.file.resolve(): plugin for plugin in self._local if plugin.announced.file}
        for file in files:
            known[file.resolve()] = plugin_of_file(file)
        extended = Plugins(
            self._selection,
            local=list(known.values()),
            strict=self._strict,
            core=self._core,
            installed=self._found(),
        )
        extended.require_files()
        return extended

    def require_files(self) -> None:
        """Load the plugin files: they were asked for, so a bad one is an error.

        Raises:
            PluginError: a file is missing, broken or disabled.
        """
        claims = self._claims() if self._local else None
        for plugin in self._local:
            plugin_file = f"plugin file '{plugin.announced.file}' cannot be used"
            if not self._allowed(plugin):
                raise PluginError(f"{plugin_file}: {self._selection.why}")
            plugin.load()
            if claims is not None and (problem := _problem(plugin, claims)):
                raise PluginError(f"{plugin_file}: {problem}")

    def require(self, requirements: Sequence[str]) -> None:
        """Check that distributions are installed in these versions (PEP 508).

        Raises:
            PluginError: one is not; the message says what is installed, and the pip command.
        """
        check_requirements(requirements)

    def entries(self, kind: type[Contribution]) -> list[Entry]:
        """All that can be used, of one kind, in the order of the plugins' names; loads what has to be loaded.

        Raises:
            PluginError: strict, and some plugin is bad.
        """
        if self._strict:
            self.check()
        return self.usable(kind)

    def usable(self, kind: type[Contribution]) -> list[Entry]:
        """As :meth:`entries`, also where some plugin is bad in strict mode."""
        plugins = self._loaded_for(kind)
        claims = self._claims()
        return [
            Entry(each, plugin.announced.provider)
            for plugin in plugins
            for each in _outcome(plugin).contributions
            if isinstance(each, kind)
            and not any(claims.clash(plugin, claim) for claim in claims_of(each, kind))
        ]

    def why_not(self, kind: type[Contribution], name: str) -> str:
        """Why ``name`` cannot be had: ambiguous, broken, disabled or not installed, and what to do; empty if unknown."""
        self._loaded_for(kind)
        claims = self._claims()
        distribution = KNOWN.get((kind.kind, name), "")
        having = [each for each in self._all() if name in each.names.get(kind.kind, ())]
        announced = [each for each in self._all() if _is_called(each, name, distribution)]
        for plugin in sorted(having or announced, key=self._allowed, reverse=True):
            if not self._allowed(plugin):
                return f"{plugin.announced} is disabled: {self._selection.why}"
            claim = (kind.kind, name)
            if clash := claims.clash(plugin, claim) if claim in plugin.claims else "":
                return clash
            if plugin.error:
                return f"{plugin.announced} is broken: {plugin.error}"
            if plugin.outcome is None and plugin in having:
                return f"{plugin.announced} is still being loaded; try again when it is"
        if distribution and installed_version(distribution) is None:
            return f"{distribution} provides it and is not installed; run `pip install {distribution}`"
        return perhaps_in(self._all(), self._selection, claims.names(kind), (kind.kind, name))

    def records(self, load: bool = True) -> list[Record]:
        """What is known of every plugin, installed ones by name, then plugin files.

        Args:
            load: load all that are let in; else only those whose contributions cannot be told without running them.
        """
        for plugin in self._enabled():
            if load or plugin.manifest is None or plugin.manifest.data_only:
                plugin.load()
        claims = self._claims()
        return [self._record(plugin, claims) for plugin in self._all()]

    def check(self) -> None:
        """Load all plugins that are let in.

        Raises:
            PluginError: some are bad, or the selection names some that nobody has; the message lists them all.
        """
        bad = [record for record in self.records() if record.bad]
        parts = [unknown_names(self.unknown_selected)] if self.unknown_selected else []
        if bad:
            each = "; ".join(f"{record.plugin} ({record.status}): {record.error}" for record in bad)
            parts.append(f"{counted(len(bad), 'plugin')} cannot be used as installed: {each}")
        if parts:
            raise PluginError("; ".join(parts))

    def warn_once(self, say: Callable[[str], None] = _log.warning) -> None:
        """Say in one message, once in a process, which of the plugins that have been loaded are not used.

        Names in the selection that no plugin has are said too.
        """
        if _warned.is_set() or (self._installed is None and not self._local):
            return
        loaded = [plugin for plugin in self._enabled() if plugin.outcome is not None]
        claims = self._claims()
        clashing = [plugin for plugin in loaded if claims.clashes(plugin)]
        if parts := not_in_use(loaded, clashing, self.unknown_selected):
            _warned.set()
            say(f"{'; '.join(parts)}; `sld plugins check` says why")

    @property
    def unknown_selected(self) -> list[str]:
        """Names in the selection that no plugin has: a plugin that was meant to be disabled may not be."""
        known = {plugin.announced.plugin for plugin in self._all()}
        return sorted((self._selection.without | (self._selection.only or frozenset())) - known)

    def _found(self) -> Sequence[Plugin]:
        with self._lock:
            if self._installed is None:
                self._installed = [Plugin(each) for each in discover()]
            return self._installed

    def _all(self) -> list[Plugin]:
        return [*self._found(), *self._local]

    def _allowed(self, plugin: Plugin) -> bool:
        return self._selection.allows(plugin.announced.plugin)

    def _enabled(self) -> list[Plugin]:
        return [plugin for plugin in self._all() if self._allowed(plugin)]

    def _claims(self) -> Claims:
        if self._core is None:
            from sldcore import builtin

            self._core = builtin.entries()
        return Claims(self._core, self._enabled())

    def _loaded_for(self, kind: type[Contribution]) -> list[Plugin]:
        """The plugins that have, or may have, something of one kind, loaded."""
        able = [
            plugin
            for plugin in self._enabled()
            if plugin.manifest is None or kind.kind in plugin.manifest.contributes
        ]
        for plugin in able:
            plugin.load()
        return able

    def _record(self, plugin: Plugin, claims: Claims) -> Record:
        outcome, announced = _outcome(plugin), plugin.announced
        if not self._allowed(plugin):
            status, error = Status.DISABLED, self._selection.why
        elif outcome.error:
            status, error = Status.BROKEN, outcome.error
        elif clashes := claims.clashes(plugin):
            status, error = Status.DUPLICATE, "; ".join(clashes)
        else:
            status, error = (Status.OK if plugin.outcome is not None else Status.NOT_LOADED), ""
        return Record(
            plugin=announced.plugin,
            module=announced.module,
            distribution=announced.distribution,
            version=announced.version,
            status=status,
            error=error,
            import_seconds=outcome.import_seconds,
            contributions=plugin.names,
            manifest=plugin.manifest is not None,
            api=outcome.api if plugin.manifest is None else plugin.manifest.api,
        )


def _outcome(plugin: Plugin) -> Outcome:
    """What loading came to; nothing if it has not been loaded."""
    return plugin.outcome or Outcome()


def _problem(plugin: Plugin, claims: Claims) -> str:
    return _outcome(plugin).error or "; ".join(claims.clashes(plugin))


def _is_called(plugin: Plugin, name: str, distribution: str) -> bool:
    return plugin.announced.plugin == name or bool(
        distribution and plugin.announced.distribution == distribution
    )
