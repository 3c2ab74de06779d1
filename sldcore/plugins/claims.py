"""Who may provide a name.

What the core has stays the core's. What two plugins provide is nobody's until one of them is disabled, so that installing
a plugin, or one that breaks, never changes what a policy means. Families claim the pipeline classes they are for as they claim their names.
"""

from __future__ import annotations

from collections.abc import Sequence

from sldcore.catalogue import Entry
from sldcore.contributions import Contribution, FamilyKind
from sldcore.plugins.loading import PIPELINE_CLASS, Claim, Plugin


def claims_of(contribution: Contribution, kind: type[Contribution]) -> list[Claim]:
    """What a contribution wants for itself."""
    classes = contribution.pipelines if isinstance(contribution, FamilyKind) else ()
    return [(kind.kind, contribution.name), *((PIPELINE_CLASS, each) for each in classes)]


class Claims:
    """The claims of the core and of the plugins that are let in."""

    def __init__(self, core: Sequence[Entry], plugins: Sequence[Plugin]) -> None:
        self._core = {
            claim: entry.provider
            for entry in core
            for claim in claims_of(entry.contribution, type(entry.contribution))
        }
        self._plugins = plugins

    def clash(self, plugin: Plugin, claim: Claim) -> str:
        """Who else has what ``plugin`` claims, what follows, and what to do; empty if nobody."""
        kind, name = claim
        if owner := self._core.get(claim):
            return (
                f"{kind} '{name}' is {owner}'s own, which stays in use; the plugin must choose another name"
            )
        others = [each for each in self._plugins if each is not plugin and claim in each.claims]
        if not others:
            return ""
        named = ", ".join(map(_described, others))
        disabled = next((each for each in (plugin, *others) if each.error), plugin)
        return (
            f"{kind} '{name}' is provided by {_described(plugin)} and by {named}: neither is used until one is disabled, "
            f"for example with SLD_PLUGINS=-{disabled.announced.plugin}"
        )

    def clashes(self, plugin: Plugin) -> list[str]:
        """Every clash of one plugin."""
        return [text for claim in sorted(plugin.claims) if (text := self.clash(plugin, claim))]

    def names(self, kind: type[Contribution]) -> set[str]:
        """All names of one kind that are known."""
        core = {name for own, name in self._core if own == kind.kind}
        return core.union(*(plugin.names.get(kind.kind, ()) for plugin in self._plugins))


def _described(plugin: Plugin) -> str:
    return f"the broken {plugin.announced}" if plugin.error else str(plugin.announced)
