"""What is said of plugins that are not used: which they are, and what cannot be known because of it."""

from __future__ import annotations

from collections.abc import Sequence

from sldcore.errors import listed, nearest
from sldcore.plugins.discovery import VARIABLE, Selection
from sldcore.plugins.loading import Claim, Plugin


def perhaps_in(plugins: Sequence[Plugin], selection: Selection, known: set[str], claim: Claim) -> str:
    """Which plugins whose names are unknown may have what is claimed, which none of the others has; empty if there are none.

    Args:
        plugins: all of them.
        selection: which may be used.
        known: all names of this kind that are known, for a suggestion.
        claim: kind and name that were asked for.
    """
    kind, name = claim
    unknown = [each for each in plugins if not each.names_known]
    broken = [each for each in unknown if selection.allows(each.announced.plugin) and each.error]
    loading = [each for each in unknown if selection.allows(each.announced.plugin) and not each.error]
    disabled = [each for each in unknown if not selection.allows(each.announced.plugin)]
    perhaps = []
    if len(broken) == 1:
        perhaps.append(f"{broken[0].announced}, which is broken: {broken[0].error}")
    elif broken:
        perhaps.append(f"one of {len(broken)} broken ones: {_names(broken)}; `sld plugins check` says why")
    if loading:
        perhaps.append(f"one that is still being loaded: {_names(loading)}")
    if disabled:
        perhaps.append(f"one of the disabled plugins: {_names(disabled)}; {selection.why}")
    if not perhaps:
        return ""
    nowhere = (
        f"no {kind} is called '{name}' in what is let in" if disabled else "no plugin that works provides it"
    )
    return f"{nowhere}{nearest(name, known)}; perhaps it is in {'; or in '.join(perhaps)}"


def not_in_use(loaded: Sequence[Plugin], clashing: Sequence[Plugin], unselected: Sequence[str]) -> list[str]:
    """What to warn of: plugins that are broken or clash, and names of plugins that nobody has."""
    parts = [unknown_names(unselected)] if unselected else []
    if broken := [each for each in loaded if each.error]:
        verb = "is" if len(broken) == 1 else "are"
        parts.append(f"{counted(len(broken), 'plugin')} {verb} broken and not used: {_names(broken)}")
    if nameless := [each for each in broken if not each.names_known]:
        parts.append(f"names of {_names(nameless)} are unknown, and other plugins may take them")
    if clashing:
        parts.append(f"names that others have too are not taken from these plugins: {_names(clashing)}")
    return parts


def unknown_names(names: Sequence[str]) -> str:
    """That the selection names plugins which nobody has, so that one meant to be disabled may not be."""
    return f"{VARIABLE} names what no plugin is called: {listed(names)}"


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _names(plugins: Sequence[Plugin]) -> str:
    return listed(each.announced.plugin for each in plugins)
