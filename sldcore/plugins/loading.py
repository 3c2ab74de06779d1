"""Loading one plugin, so that nothing it does wrong reaches anybody else.

Whatever a plugin raises, except Ctrl-C, becomes a text. What can be told of a broken one is kept, so that whoever names
something of it learns that it is broken rather than missing.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import RLock
from time import perf_counter
from types import ModuleType
from typing import Final

from sldcore.contributions import Contribution
from sldcore.errors import PluginError, listed
from sldcore.hookspecs import API_VERSION
from sldcore.plugins.discovery import announced_file
from sldcore.plugins.hooks import HOOKS, guarded, hooks_of
from sldcore.plugins.manifest import Manifest, data_packs, manifest_folder, read_manifest
from sldcore.plugins.records import Announced, describe, one_line

# One for all plugins: a plugin may look into the catalogue while it is imported, and two locks would wait for each other.
_LOADING: Final = RLock()

PIPELINE_CLASS: Final = "family of pipeline class"
"""What a family claims beside its name."""

Claim = tuple[str, str]
"""A kind and a name."""

Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What loading came to. ``names`` are those that could be told even if there is an ``error``."""

    contributions: tuple[Contribution, ...] = ()
    error: str = ""
    names: Names = field(default_factory=dict)
    import_seconds: float | None = None
    api: int | None = None


class Plugin:
    """One plugin: its manifest if it has one, and what it contributes, both read once and only when needed."""

    def __init__(self, announced: Announced) -> None:
        self.announced = announced
        self._manifest: Manifest | None = None
        self._manifest_read = False
        self._manifest_problem = ""
        self._outcome: Outcome | None = None
        self._loading = False

    @property
    def manifest(self) -> Manifest | None:
        """What the plugin says of itself; None if it ships no manifest, or one that cannot be used."""
        with _LOADING:
            if not self._manifest_read:
                self._read_manifest()
            return self._manifest

    def _read_manifest(self) -> None:
        self._manifest_read = True
        if self.announced.file is not None or self.announced.problem:
            return
        folder = manifest_folder(self.announced.module)
        if folder is None:
            return
        try:
            self._manifest = read_manifest(folder)
        except PluginError as problem:
            self._manifest_problem = str(problem)

    @property
    def outcome(self) -> Outcome | None:
        """What loading came to, if it has been loaded."""
        return self._outcome

    @property
    def names(self) -> Names:
        """What it contributes, by kind, as far as it is known without loading it now."""
        if self._outcome is not None:
            return self._outcome.names
        return self.manifest.contributes if self.manifest is not None else {}

    @property
    def claims(self) -> set[Claim]:
        """Kind and name of all that it wants for itself; nothing if it is broken."""
        if self._outcome is None:
            return {(kind, name) for kind, names in self.names.items() for name in names}
        classes = {name for each in self._outcome.contributions for name in getattr(each, "pipelines", ())}
        named = {(kind, name) for kind, names in self._outcome.names.items() for name in names}
        return set() if self._outcome.error else named | {(PIPELINE_CLASS, name) for name in classes}

    def load(self) -> None:
        """Load it if that has not happened yet. Does nothing if it is being loaded by this very thread."""
        with _LOADING:
            if self._outcome is not None or self._loading:
                return
            self._loading = True
            try:
                self._outcome = self._load()
            finally:
                self._loading = False

    def _load(self) -> Outcome:
        manifest = self.manifest
        if problem := self.announced.problem or self._manifest_problem:
            return Outcome(error=problem)
        loader = _Loader(self.announced, manifest)
        try:
            loader.load()
        except PluginError as problem:
            loader.problems.append(str(problem))
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # a plugin may raise SystemExit too; it must not end the host
            loader.problems.append(describe(problem))
        return loader.outcome()


def plugin_of_file(path: Path) -> Plugin:
    """The plugin in a file: the same one for the same content, so that policies that name it share it."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        digest = ""  # its announcement says what is wrong
    return _plugin_of_content(path, digest)


@cache
def _plugin_of_content(path: Path, digest: str) -> Plugin:
    return Plugin(announced_file(path))


class _Loader:
    """The state of loading one plugin."""

    def __init__(self, announced: Announced, manifest: Manifest | None) -> None:
        self.announced = announced
        self.manifest = manifest
        self.problems: list[str] = []
        self._found: list[tuple[str, Contribution]] = []
        self._seconds: float | None = None
        self._api: int | None = None

    def load(self) -> None:
        if self.manifest is not None:
            self._check_api(self.manifest.api, "its manifest asks for api")
            folder = manifest_folder(self.announced.module)
            if folder is not None:
                self._found += [(pack.kind, pack) for pack in data_packs(folder, self.manifest)]
        if self.manifest is None or not self.manifest.data_only:
            self._load_module()
        counts = Counter(f"{kind} '{each.name}'" for kind, each in self._found)
        if twice := [what for what, count in counts.items() if count > 1]:
            raise PluginError(f"it contributes twice: {listed(twice)}")
        if not self.problems:
            self._check_manifest()

    def outcome(self) -> Outcome:
        names = self._told()
        if self.problems:
            if self.manifest is not None:
                names = {**names, **self.manifest.contributes}
            error = "; ".join(dict.fromkeys(self.problems))
            return Outcome((), error, names, self._seconds, self._api)
        return Outcome(tuple(each for _, each in self._found), "", names, self._seconds, self._api)

    def _load_module(self) -> None:
        start = perf_counter()
        try:
            module = _import(self.announced)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            raise PluginError(f"cannot be imported: {describe(problem)}; {self._remedy()}") from None
        finally:
            self._seconds = perf_counter() - start
        self._check_api(getattr(module, "SLD_API", None), "its module says SLD_API =")
        hooks = list(hooks_of(module, self.announced.plugin))
        if not hooks:
            raise PluginError(
                "it has no hooks; mark functions with `from sldcore.hookspecs import hookimpl` "
                f"(hooks: {listed(HOOKS)})"
            )
        for name, function in hooks:
            self._call(name, function)

    def _call(self, name: str, function: Callable[[], object]) -> None:
        try:
            returned = function()
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            self.problems.append(f"hook '{name}' failed: {describe(problem)}; {self._remedy()}")
            return
        advice = ""
        if inspect.iscoroutine(returned):
            returned.close()  # or Python warns that nobody awaited it
            advice = "; write `def`, not `async def`"
        if isinstance(returned, list | tuple):
            self._take(name, returned)
        else:
            self.problems.append(
                f"hook '{name}' must return a list of {HOOKS[name].__name__}, and returned "
                f"{type(returned).__name__}{advice}"
            )

    def _take(self, name: str, returned: Sequence[object]) -> None:
        kind = HOOKS[name]
        for each in returned:
            try:
                self._found.append((kind.kind, guarded(each, kind, self.announced)))
            except PluginError as problem:
                self.problems.append(f"hook '{name}': {problem}")
            except Exception as problem:  # a contribution class of the plugin's own
                self.problems.append(f"hook '{name}': {describe(problem)}")

    def _check_api(self, api: object, who: str) -> None:
        self._api = api if isinstance(api, int) and not isinstance(api, bool) else None
        if self._api == API_VERSION:
            return
        if api is None:
            raise PluginError(
                f"it does not say which contract it is written for; add `SLD_API = {API_VERSION}`"
            )
        newer = self._api is not None and self._api > API_VERSION
        advice = "upgrade sldcore" if newer else f"upgrade the plugin: {self._remedy()}"
        raise PluginError(
            f"{who} {one_line(repr(api))}, and this sldcore has plugin contract {API_VERSION}; {advice}"
        )

    def _check_manifest(self) -> None:
        if self.manifest is None or self._told() == self.manifest.contributes:
            return
        told, said = (
            {f"{kind} '{name}'" for kind, names in source.items() for name in names}
            for source in (self._told(), self.manifest.contributes)
        )
        parts = [
            f"{text} {listed(some)}"
            for text, some in (
                ("it says and does not contribute", said - told),
                ("it leaves out", told - said),
            )
            if some
        ]
        raise PluginError(f"its manifest is wrong: {' and '.join(parts)}; correct its sld-plugin.yaml")

    def _told(self) -> dict[str, tuple[str, ...]]:
        names: dict[str, list[str]] = {kind.kind: [] for kind in HOOKS.values()}
        for kind, each in self._found:
            names[kind].append(each.name)
        return {kind: tuple(sorted(some)) for kind, some in names.items() if some}

    def _remedy(self) -> str:
        if not self.announced.distribution:
            return "correct the file"
        return f"`pip install -U {self.announced.distribution}`, or disable it with SLD_PLUGINS=-{self.announced.plugin}"


def _import(announced: Announced) -> ModuleType:
    if announced.file is None:
        return import_module(announced.module)
    digest = hashlib.sha256(announced.file.read_bytes()).hexdigest()[:16]
    name = f"sldcore_plugin_file_{digest}"
    spec = spec_from_file_location(name, announced.file)
    if spec is None or spec.loader is None:
        raise PluginError(f"'{announced.file}' is not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
