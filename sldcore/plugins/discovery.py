"""Which plugins are announced, and which of them ``SLD_PLUGINS`` lets in. Nothing of them is imported here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Final, Self

from packaging.utils import canonicalize_name

from sldcore.errors import PluginError
from sldcore.plugins.records import Announced, describe, one_line

GROUP: Final = "sldcore"
"""The entry-point group in which distributions announce plugins."""

VARIABLE: Final = "SLD_PLUGINS"
"""The environment variable that says which plugins may be used."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which plugins may be used: all, none, only some, or all but some."""

    text: str = ""
    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read a comma list: ``none``, names (only these), or ``-name`` (all but these). Empty means all.

        Raises:
            PluginError: ``none`` beside names, or a sign without a name.
        """
        parts = [part.strip() for part in (text or "").split(",") if part.strip()]
        if parts == ["none"]:
            return cls("none", frozenset())
        if "none" in parts or "-" in parts:
            raise PluginError(
                f"{VARIABLE}={text!r} makes no sense; write 'none', names ('a,b': only these) or '-a,-b' (all but these)"
            )
        only = frozenset(part for part in parts if not part.startswith("-"))
        without = frozenset(part[1:].strip() for part in parts if part.startswith("-"))
        return cls(",".join(parts), only or None, without)

    def allows(self, plugin: str) -> bool:
        """Whether the plugin of this name may be used."""
        return plugin not in self.without and (self.only is None or plugin in self.only)

    @property
    def why(self) -> str:
        """Why a plugin that is not allowed is disabled, and what to do."""
        if self.text == "none":
            return f"plugins are switched off (--no-plugins, or {VARIABLE}=none)"
        return f"{VARIABLE}={self.text} does not let it in; change that"


def discover() -> list[Announced]:
    """Every plugin that an installed distribution announces, sorted by name and distribution.

    One distribution whose metadata cannot be read hides no other.
    """
    found: dict[str, list[Announced]] = {}
    for each in distributions():
        text = _entry_points_text(each)
        if f"[{GROUP}]" not in text.replace(" ", ""):
            continue
        name, version = _identity(each)
        key = canonicalize_name(name) if name else text
        if key not in found and not _shadowed(name, text):
            found[key] = list(_announced(text, name, version))
    return sorted(
        (each for some in found.values() for each in some), key=lambda each: (each.plugin, each.distribution)
    )


def announced_file(path: Path) -> Announced:
    """A plugin file that was asked for; its name is the file's, without the suffix."""
    problem = ""
    if path.suffix != ".py":
        problem = f"'{path}' is not a Python file"
    elif not path.is_file():
        problem = f"there is no file '{path}'"
    return Announced(plugin=path.stem, module=str(path), file=path, problem=problem)


def _entry_points_text(each: Distribution) -> str:
    try:
        return each.read_text("entry_points.txt") or ""
    except Exception:  # unreadable metadata of anyone's distribution
        return ""


def _shadowed(name: str, text: str) -> bool:
    """Whether another copy of the distribution comes first on ``sys.path``: that one is imported, and announces for both."""
    try:
        return _entry_points_text(distribution(name)) != text
    except (PackageNotFoundError, ValueError):
        return False


def _identity(each: Distribution) -> tuple[str, str]:
    try:
        found = {key: str(each.metadata[key]) for key in ("Name", "Version") if key in each.metadata}
    except Exception:  # as above
        found = {}
    return found.get("Name", ""), found.get("Version", "")


def _announced(text: str, name: str, version: str) -> Iterator[Announced]:
    section = ""
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[] ")
            continue
        if section == GROUP:
            plugin, _, value = (one_line(part) for part in line.partition("="))
            module, problem = _module_of(plugin, value)
            yield Announced(plugin=plugin, module=module, distribution=name, version=version, problem=problem)


def _module_of(plugin: str, value: str) -> tuple[str, str]:
    """The module that an entry point names, and what is wrong with it."""
    remedy = f'its distribution must say `{plugin} = "package.module"` under [project.entry-points.{GROUP}]'
    try:
        point = EntryPoint(plugin, value, GROUP)
        module, attribute = point.module, point.attr
    except Exception as problem:  # a malformed value
        return value, f"entry point {value!r} is malformed ({describe(problem)}); {remedy}"
    if not module or not all(part.isidentifier() for part in module.split(".")):
        return value, f"entry point {value!r} is not a module; {remedy}"
    return module, f"entry point {value!r} names an object inside a module; {remedy}" if attribute else ""
