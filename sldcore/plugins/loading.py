"""Loading one plugin once, in a thread of its own and in bounded time, so that nothing it does wrong reaches anybody else.

Nobody holds a lock while a plugin runs: one that asks the catalogue while it is imported, or joins a thread that does,
or never ends, cannot stop the host.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextvars import ContextVar, copy_context
from pathlib import Path
from threading import Event, Lock, RLock, Thread
from time import monotonic
from types import FrameType
from typing import Final

from sldcore.errors import PluginError
from sldcore.plugins.discovery import announced_file
from sldcore.plugins.loader import Loader, Names, Outcome
from sldcore.plugins.manifest import Manifest, manifest_folder, read_manifest
from sldcore.plugins.quiet import quiet
from sldcore.plugins.records import Announced

LIMIT_SECONDS = 60.0
"""A plugin that is not loaded after this time is broken.

Who did not start the loading waits half of it and goes on without: the plugin itself may be waiting for that thread.
"""

PIPELINE_CLASS: Final = "family of pipeline class"
"""What a family claims beside its name."""

Claim = tuple[str, str]
"""A kind and a name."""

_within: Final[ContextVar[tuple[Plugin, ...]]] = ContextVar("sldcore_plugins_loaded_here", default=())
_files: Final[dict[tuple[str, str], Plugin]] = {}
_FILES_LOCK: Final = Lock()


class Plugin:
    """One plugin: its manifest if it has one, and what it contributes, both read once and only when needed.

    ``content`` are the bytes of a plugin file.
    """

    def __init__(self, announced: Announced, content: bytes | None = None) -> None:
        self.announced = announced
        self._content = content
        self._lock = RLock()
        self._manifest: Manifest | None = None
        self._manifest_read = False
        self._manifest_problem = ""
        self._outcome: Outcome | None = None
        self._attempt: _Attempt | None = None

    @property
    def manifest(self) -> Manifest | None:
        """What the plugin says of itself; None if it ships no manifest, or one that cannot be used."""
        with self._lock:
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
    def error(self) -> str:
        """Why it is broken; empty if it is not, or has not been loaded."""
        return self._outcome.error if self._outcome is not None else ""

    @property
    def names(self) -> Names:
        """What it contributes, by kind, as far as it is known without loading it now."""
        if self._outcome is not None:
            return self._outcome.names
        return self.manifest.contributes if self.manifest is not None else {}

    @property
    def names_known(self) -> bool:
        """Whether all its names are known: it has a manifest, or has been loaded and is not broken."""
        return self.manifest is not None or (self._outcome is not None and not self._outcome.error)

    @property
    def claims(self) -> set[Claim]:
        """Kind and name of all that it wants for itself; of a broken one, what its manifest names.

        So a plugin that breaks does not hand its names to another one.
        """
        names = self.names
        if self._outcome is not None and self._outcome.error:
            names = self.manifest.contributes if self.manifest is not None else {}
        contributions = self._outcome.contributions if self._outcome is not None else ()
        classes = {name for each in contributions for name in getattr(each, "pipelines", ())}
        named = {(kind, name) for kind, some in names.items() for name in some}
        return named | {(PIPELINE_CLASS, name) for name in classes}

    def load(self) -> None:
        """Load it if that has not happened yet.

        It may stay unloaded if it is being loaded already: by what calls this, or by another thread for long.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        within = _within.get()
        if self._outcome is not None or self in within or _is_imported_here(self.announced.module):
            return
        with self._lock:
            attempt, mine = self._attempt, self._attempt is None
            if attempt is None:
                loader = Loader(self.announced, self.manifest, self._content)
                attempt = _Attempt(self, loader)
                attempt.start()
                self._attempt = attempt
        if within and not mine:
            return  # two plugins that ask while they are imported would wait for each other
        attempt.wait(LIMIT_SECONDS if mine and not within else LIMIT_SECONDS / 2)
        if mine and attempt.interrupt is not None:
            raise attempt.interrupt

    def finish(self, outcome: Outcome | None) -> None:
        """Keep what loading came to, unless it was given up before; None: it was interrupted, and may be repeated."""
        with self._lock:
            if self._outcome is None:
                self._outcome = outcome
                if outcome is None:
                    self._attempt = None

    @property
    def problem(self) -> str:
        """Why it cannot be loaded at all: its announcement or its manifest is wrong."""
        return self.announced.problem or self._manifest_problem


class _Attempt(Thread):
    """The thread in which a plugin is loaded; a daemon, so that one that never ends does not keep the process."""

    def __init__(self, plugin: Plugin, loader: Loader) -> None:
        super().__init__(name=f"sldcore loads plugin {plugin.announced.plugin}", daemon=True)
        self.interrupt: KeyboardInterrupt | None = None
        self._plugin = plugin
        self._loader = loader
        self._began = monotonic()
        self._done = Event()
        self._surroundings = copy_context()  # the catalogue in use, and which plugins are being loaded

    def run(self) -> None:
        self._surroundings.run(self._load)

    def _load(self) -> None:
        _within.set((*_within.get(), self._plugin))
        outcome = None
        try:
            with quiet():
                problem = self._plugin.problem
                outcome = Outcome(error=problem) if problem else self._loader.run()
        except KeyboardInterrupt as interrupt:
            self.interrupt = interrupt
        finally:
            self._plugin.finish(outcome)
            self._done.set()

    def wait(self, seconds: float) -> None:
        """Wait until the plugin is loaded, at most until ``seconds`` after the start; then it may be given up."""
        self._done.wait(max(0.0, self._began + seconds - monotonic()))
        given_up = seconds >= LIMIT_SECONDS or monotonic() >= self._began + LIMIT_SECONDS
        if given_up and not self._done.is_set():
            self._plugin.finish(self._loader.late(LIMIT_SECONDS))


def plugin_of_file(path: Path) -> Plugin:
    """The plugin in a file: the same one for the same content, so that policies that name it share it."""
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
    except (OSError, ValueError):
        content, digest = None, ""  # its announcement says what is wrong
    key = (os.path.abspath(path), digest)
    with _FILES_LOCK:
        if key not in _files:
            _files[key] = Plugin(announced_file(path), content)
        return _files[key]


def _is_imported_here(module: str) -> bool:
    """Whether this thread is importing the module's package: another thread would wait for it, and it for that thread."""
    top = module.partition(".")[0]
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "<module>" and name.partition(".")[0] == top:
            return True
        frame = frame.f_back
    return False
