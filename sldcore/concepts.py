"""Concept packs: reading them, and resolving what a policy uses.

A pack is one YAML file of data: a text for the whole pack, and concepts that can be used one by one. Packs that come
with sldcore or with a plugin are named by their id; any other is read from its path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, Final, cast

from sldcore.catalogue import current
from sldcore.contributions import ConceptProvider
from sldcore.documents import read_text
from sldcore.errors import ConceptError, listed
from sldcore.packs import ConceptPack, PackConcept, pack_schema
from sldcore.policy_parts import ConceptUse, Window
from sldcore.types import Concept

__all__ = [
    "ConceptPack",
    "PackConcept",
    "UsedConcept",
    "load_pack",
    "pack_ids",
    "pack_schema",
    "resolve",
]

_INSTALLED: Final = Path(__file__).with_name("concepts_data")
_CHECKOUT: Final = Path(__file__).parent.parent / "concepts"


@dataclass(frozen=True, slots=True)
class UsedConcept:
    """A concept as a policy uses it: weight and strength are the pack's times the use's; ``window`` is the use's own."""

    concept: Concept
    window: Window | None = None


def pack_ids() -> tuple[str, ...]:
    """The ids of the packs that come with sldcore, sorted; those of plugins are in the catalogue."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def load_pack(id_or_path: str | os.PathLike[str]) -> ConceptPack:
    """Read a pack: one that comes with sldcore or with a plugin by its id, any other by the path of its ``.yaml`` file.

    Raises:
        ConceptError: It is malformed.
        PluginError: There is no pack of this id, or the plugin that has it is broken or disabled.
    """
    name = os.fspath(id_or_path)
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return _read_pack(Path(name))
    return _shipped_pack(name) if name in pack_ids() else _provided_pack(name)


def resolve(
    uses: Sequence[ConceptUse], packs: Callable[[str], ConceptPack] = load_pack
) -> tuple[UsedConcept, ...]:
    """The concepts that a policy uses, in its order, without those that it takes out again with ``!``.

    Of several with the same text, prefix and embedding one is left: one that is named beats one of a ``pack/*``, and of
    equals the first counts.

    Args:
        uses: The policy's uses.
        packs: From a pack's id to the pack.

    Raises:
        ConceptError: A concept that is not available; one that is named twice with different weights, strengths or
            windows; a ``!`` that takes nothing out; or nothing is left.
        PluginError: A pack that cannot be had.
    """
    found = [(used, named) for use in uses for used, named in _of_use(use, packs)]
    names = [name for use in uses for name in use.use or ()]
    excluded = _excluded([name[1:] for name in names if name.startswith("!")], found, packs)
    kept = [(used, named) for used, named in found if used.concept.id not in excluded]
    if uses and not kept:
        raise ConceptError(
            f"no concept is left after {', '.join(name for name in names if name.startswith('!'))}; "
            "use more, or take less out"
        )
    return _distinct(kept)


def _of_use(use: ConceptUse, packs: Callable[[str], ConceptPack]) -> Iterator[tuple[UsedConcept, bool]]:
    """The concepts of one use, and whether each is named, not one of a ``pack/*``."""
    if use.text is not None:
        text = f"{use.prefix} {use.text}" if use.prefix else use.text
        yield _used(Concept(_text_id(text), text, use.prefix), use), True
    for name in use.use or ():
        if not name.startswith("!"):
            yield from ((_used(concept, use), not name.endswith("/*")) for concept in _named(name, packs))


def _named(name: str, packs: Callable[[str], ConceptPack]) -> tuple[Concept, ...]:
    """The concepts that ``pack``, ``pack/concept`` or ``pack/*`` stands for."""
    pack_name, _, own = name.partition("/")
    pack = packs(pack_name)
    if not own:
        return (pack.whole(),)
    return tuple(map(pack.concept, [each.id for each in pack.concepts] if own == "*" else [own]))


def _used(concept: Concept, use: ConceptUse) -> UsedConcept:
    weight, strength = concept.weight * use.weight, concept.strength * use.strength
    if not isfinite(weight) or not isfinite(strength):
        raise ConceptError(
            f"concept '{concept.id}': weight or strength is too large; it multiplies the pack's own"
        )
    return UsedConcept(replace(concept, weight=weight, strength=strength), use.window)


def _excluded(
    names: Sequence[str], found: Sequence[tuple[UsedConcept, bool]], packs: Callable[[str], ConceptPack]
) -> set[str]:
    """The ids that are taken out. Each name must take something out: a slip must not leave guidance on or off."""
    used = {each.concept.id for each, _ in found}
    excluded: set[str] = set()
    for name in names:
        taken = used & {concept.id for concept in _named(name, packs)}
        if not taken:
            pack = name.partition("/")[0]
            hint = (
                f"; it uses the text of '{pack}' as a whole, '{pack}/*' are its concepts"
                if pack in used
                else ""
            )
            raise ConceptError(
                f"'!{name}' takes nothing out: the policy does not use it{hint} (used: {listed(used)})"
            )
        excluded |= taken
    return excluded


def _distinct(found: Sequence[tuple[UsedConcept, bool]]) -> tuple[UsedConcept, ...]:
    kept: dict[tuple[Any, ...], tuple[UsedConcept, bool]] = {}
    for used, named in found:
        concept = used.concept
        key = (concept.text, concept.prefix, concept.embedding)
        first, first_named = kept.setdefault(key, (used, named))
        if named and not first_named:
            kept[key] = (used, named)
        elif named and concept.id == first.concept.id and used != first:
            raise ConceptError(
                f"concept '{concept.id}' is named twice with different weight, strength or window; name it once"
            )
    return tuple(used for used, _ in kept.values())


def _text_id(text: str) -> str:
    # Readable, and the same for the same text only: policies of one batch may bring several texts of their own.
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24].rstrip("-")
    return f"custom/{slug}-{sha256(text.encode()).hexdigest()[:8]}".replace("/-", "/")


def _folder() -> Path:
    """The packs of the installed wheel, or those of the checkout that this package is imported from."""
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


@cache
def _shipped_pack(name: str) -> ConceptPack:
    return _read_pack(_folder() / f"{name}.yaml")


def _provided_pack(name: str) -> ConceptPack:
    entry = current().entry(ConceptProvider, name)
    provider = f"concept pack '{name}' of {entry.provider}"
    try:
        pack = cast(ConceptProvider, entry.contribution).load()
    except Exception as problem:
        raise ConceptError(f"{provider} cannot be read: {problem or type(problem).__name__}") from problem
    if not isinstance(pack, ConceptPack):
        raise ConceptError(f"{provider} is broken: it gave {type(pack).__name__} in place of a ConceptPack")
    if pack.id != name:
        raise ConceptError(
            f"{provider} is broken: its id is '{pack.id}'; provider and pack must have the same name"
        )
    return pack


def _read_pack(path: Path) -> ConceptPack:
    return ConceptPack.parse(read_text(path, error=ConceptError), str(path), path.parent)
