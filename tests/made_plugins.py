"""Distributions made by hand, found as pip's are: a module or package beside a ``*.dist-info`` folder on ``sys.path``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import invalidate_caches
from pathlib import Path
from textwrap import dedent
from threading import Event

import pytest

from sldcore.catalogue import Catalogue, Entry, Provider
from sldcore.contributions import Contribution, WindowKind
from sldcore.plugins import Plugins
from sldcore.plugins.records import Record

HEAD = "from sldcore.hookspecs import hookimpl\nfrom sldcore.contributions import *\nSLD_API = 1\n"
PACK = (
    "id: {name}\nversion: '1'\ntitle: Heights\nlicence: MIT\nconcepts: [{{id: high, text: a high place}}]\n"
)
CORE = [
    Entry(
        WindowKind(name="core-window", create=lambda options: lambda step: 1.0),
        Provider("sldcore", "sldcore", "9.9"),
    )
]


def window(name: str) -> str:
    """A module that contributes one window."""
    return HEAD + dedent(f"""
        @hookimpl
        def sld_windows():
            return [WindowKind(name="{name}", create=lambda options: lambda step: 1.0)]
        """)


BROKEN: Mapping[str, str] = {
    "raises": "raise RuntimeError('no licence found')\n",
    "exits": "raise SystemExit(3)\n",
    "misspelt": HEAD + "@hookimpl\ndef sld_window():\n    return []\n",
    "wrong-type": HEAD
    + "@hookimpl\ndef sld_windows():\n    return [GuidanceMethod(name='x', create=object)]\n",
    "no-list": HEAD + "@hookimpl\ndef sld_windows():\n    return WindowKind(name='x', create=object)\n",
    "other-api": window("from-the-future").replace("SLD_API = 1", "SLD_API = 2"),
    "no-api": window("undated").replace("SLD_API = 1", ""),
    "hook-raises": HEAD + "@hookimpl\ndef sld_windows():\n    return [1 / 0]\n",
    "async": HEAD + "@hookimpl\nasync def sld_windows():\n    return []\n",
    "unmarked": HEAD + "def sld_windows():\n    return []\n",
    "arguments": HEAD + "@hookimpl\ndef sld_windows(options):\n    return []\n",
    "wrapper": HEAD + "@hookimpl(wrapper=True)\ndef sld_windows():\n    return (yield)\n",
    "missing": "import a_module_that_nobody_has\n",
    "syntax": "def (\n",
    "bad-name": HEAD
    + "@hookimpl\ndef sld_windows():\n    return [WindowKind(name='Not A Name', create=object)]\n",
    "twice": HEAD + "@hookimpl\ndef sld_windows():\n    return [WindowKind(name='x', create=object)] * 2\n",
    "no-function": HEAD + "@hookimpl\ndef sld_windows():\n    return [WindowKind(name='x', create=None)]\n",
}
"""Plugins by what is wrong with them."""


@dataclass
class Site:
    """A folder on ``sys.path`` with plugins in it."""

    folder: Path
    names: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        code: str = "",
        *,
        version: str = "1.0",
        distribution: str | None = None,
        files: Mapping[str, str] | None = None,
        value: str | None = None,
    ) -> str:
        """Install a plugin; with ``files`` (manifest, packs) as a package, else as a module. Returns the module's name."""
        distribution = distribution or f"sld-{name}"
        module = f"made_{distribution}".replace("-", "_")
        if files is None:
            (self.folder / f"{module}.py").write_text(code)
        else:
            (self.folder / module).mkdir()
            for file, text in {"__init__.py": code, **files}.items():
                (self.folder / module / file).write_text(text)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[sldcore]\n{name} = {value or module}\n")
        self.names.append(name)
        invalidate_caches()
        return module

    def add_broken(self, *names: str) -> None:
        """Install plugins of ``BROKEN``."""
        for name in names:
            self.add(name, BROKEN[name])

    def plugins(
        self, selection: str | None = None, strict: bool = False, local: Sequence[Path] = ()
    ) -> Plugins:
        """The plugins of this folder; those of the environment that the tests run in are kept out."""
        mine = [*self.names, *(path.stem for path in local)]
        return Plugins.from_environment(selection or ",".join(mine) or "none", local, strict, CORE)

    def catalogue(self, selection: str | None = None, strict: bool = False) -> Catalogue:
        """Core and plugins."""
        return Catalogue(CORE, self.plugins(selection, strict))

    def records(self, plugins: Plugins | None = None, load: bool = True) -> dict[str, Record]:
        """Records of this folder's plugins by name."""
        found = (plugins or self.plugins()).records(load)
        return {record.plugin: record for record in found if record.plugin in self.names}

    def forget(self) -> None:
        """Take what was imported out of ``sys.modules``."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                del sys.modules[name]


def names(plugins: Plugins, kind: type[Contribution]) -> list[str]:
    """Names of what can be used, of one kind."""
    return [entry.contribution.name for entry in plugins.entries(kind)]


def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A fixture's body: an empty site; nothing has been warned of, and no plugin is selected."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("SLD_PLUGINS", raising=False)
    monkeypatch.setattr("sldcore.plugins.source._warned", Event())
    made = Site(folder)
    yield made
    made.forget()
