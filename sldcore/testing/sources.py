"""Catalogues for tests: the core with contributions that a test brings, or with discovery refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from sldcore.catalogue import Catalogue, Entry, Provider
from sldcore.contributions import Contribution
from sldcore.errors import PluginError, listed, nearest

PROVIDER: Final = Provider("test", "", "0")
"""Who contributes what a test brings, unless it says otherwise."""

HOW_TO_ASK: Final = (
    "mark the test with @pytest.mark.sldcore_plugins or use the fixture installed_plugins, or bring the contribution "
    "itself with the fixture plugin_catalogue"
)


def catalogue_of(*contributions: Contribution, provider: Provider = PROVIDER) -> Catalogue:
    """The core's catalogue and ``contributions``, as if a plugin brought them; no plugin that is installed is looked at.

    Use it with :func:`sldcore.catalogue.using`.

    Raises:
        PluginError: two contributions of one kind have the same name, or the core has it.
    """
    from sldcore import builtin

    core = builtin.entries()
    taken = {(type(entry.contribution), entry.contribution.name) for entry in core}
    for each in contributions:
        key = (type(each), each.name)
        if key in taken:
            raise PluginError(
                f"there are two contributions of kind '{each.kind}' with the name '{each.name}'; rename one"
            )
        taken.add(key)
    return Catalogue(core, GivenPlugins([Entry(each, provider) for each in contributions]))


def catalogue_with(contribution: Contribution) -> Catalogue:
    """The core's catalogue, in which ``contribution`` takes the place of what has its kind and name."""
    from sldcore import builtin

    key = (type(contribution), contribution.name)
    others = [each for each in builtin.entries() if (type(each.contribution), each.contribution.name) != key]
    return Catalogue([Entry(contribution, PROVIDER), *others], GivenPlugins())


class GivenPlugins:
    """A source of the entries that it is given, and of nothing else."""

    def __init__(self, given: Sequence[Entry] = ()) -> None:
        self._given = tuple(given)

    def entries(self, kind: type[Contribution]) -> Sequence[Entry]:
        """Those of one kind."""
        return [entry for entry in self._given if type(entry.contribution) is kind]

    def why_not(self, kind: type[Contribution], name: str) -> str:
        """Nobody knows what is installed: it was not looked at."""
        from sldcore import builtin

        names = [
            entry.contribution.name
            for entry in (*builtin.entries(), *self._given)
            if isinstance(entry.contribution, kind)
        ]
        return (
            f"the core has none of that name{nearest(name, names)} (available: {listed(names)}), and a test does not look at "
            f"installed plugins; {HOW_TO_ASK}"
        )

    def with_files(self, files: Sequence[Path]) -> NoReturn:
        """Refused.

        Raises:
            PluginError: always.
        """
        raise PluginError(f"a test does not load plugin files ({', '.join(map(str, files))}); {HOW_TO_ASK}")

    def require(self, requirements: Sequence[str]) -> NoReturn:
        """Refused.

        Raises:
            PluginError: always.
        """
        raise PluginError(
            f"a test does not look for installed plugins ({', '.join(requirements)}); {HOW_TO_ASK}"
        )
