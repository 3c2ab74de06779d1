"""What one plugin contributes: its module imported, its hooks called, and all of it checked.

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
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from time import perf_counter
from types import ModuleType

from sldcore.contributions import Contribution
from sldcore.errors import PluginError, listed
from sldcore.hookspecs import API_VERSION
from sldcore.plugins.hooks import HOOKS, guarded, hooks_of
from sldcore.plugins.manifest import Manifest, data_packs, manifest_folder
from sldcore.plugins.records import Announced, describe, one_line

Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What loading came to. ``names`` are those that could be told even if there is an ``error``."""

    contributions: tuple[Contribution, ...] = ()
    error: str = ""
    names: Names = field(default_factory=dict)
    import_seconds: float | None = None
    api: int | None = None


class Loader:
    """The state of loading one plugin.

    ``content`` are the bytes of a plugin file. ``doing`` says what is being done, for whoever has waited too long.
    """

    def __init__(self, announced: Announced, manifest: Manifest | None, content: bytes | None = None) -> None:
        self.announced = announced
        self.manifest = manifest
        self.content = content
        self.doing = "import"
        self.problems: list[str] = []
        self._found: list[tuple[str, Contribution]] = []
        self._seconds: float | None = None
        self._api: int | None = None

    def run(self) -> Outcome:
        """Load the plugin; whatever it raises, except Ctrl-C, is in the outcome."""
        try:
            self._load()
        except PluginError as problem:
            self.problems.append(str(problem))
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # a plugin may raise SystemExit too; it must not end the host
            self.problems.append(describe(problem))
        return self._outcome()

    def late(self, seconds: float) -> Outcome:
        """What to say of a plugin that is not loaded after ``seconds``."""
        names = self.manifest.contributes if self.manifest is not None else {}
        return Outcome(error=f"{self.doing} did not end within {seconds:g} s; {self._remedy()}", names=names)

    def _load(self) -> None:
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

    def _outcome(self) -> Outcome:
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
            module = _import(self.announced, self.content)
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
        self.doing = f"hook '{name}'"
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


def _import(announced: Announced, content: bytes | None) -> ModuleType:
    if announced.file is None:
        return import_module(announced.module)
    if content is None:
        raise PluginError(f"'{announced.file}' cannot be read")
    path = str(announced.file)
    name = f"sldcore_plugin_file_{hashlib.sha256(path.encode() + content).hexdigest()[:16]}"
    spec = spec_from_file_location(name, announced.file)
    if spec is None:
        raise PluginError(f"'{announced.file}' is not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look a class's module up there
    try:
        # The bytes that were read, and no cache of bytecode: that one takes two edits within a second for one.
        exec(compile(content, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
