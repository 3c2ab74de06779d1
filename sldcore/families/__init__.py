"""Families: the small adapters that know how a kind of pipeline calls its denoiser and encodes text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sldcore.catalogue import Entry, current
from sldcore.contributions import FamilyKind
from sldcore.errors import UnsupportedPipelineError, listed
from sldcore.families.base import Family


def family_of(pipe: Any) -> Family:
    """The family that knows ``pipe``'s class, or the nearest of its base classes; the core's before those of plugins.

    Raises:
        UnsupportedPipelineError: there is none.
    """
    catalogue = current()
    found = _of_class(type(pipe), catalogue.core_entries(FamilyKind))
    found = found or _of_class(type(pipe), catalogue.entries(FamilyKind))
    if found is None and getattr(pipe, "guider", None) is not None:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} leaves guidance to a guider, so no family knows it. Call it yourself inside "
            f"guard(pipe, policy), or give it a SafetyGuider.for_pipeline(pipe, policy); nothing reviews its pictures then"
        )
    if found is None:
        raise UnsupportedPipelineError(
            f"no family knows {type(pipe).__name__}, so nothing can guide it. Supported classes: "
            f"{listed(supported_classes())}. For another class write a family, a subclass of "
            f"sldcore.families.base.DiffusersFamily, and contribute it as a FamilyKind: docs/models.md says how"
        )
    return found.create()


def supported_classes() -> tuple[str, ...]:
    """Names of the pipeline classes that some family knows."""
    return tuple(name for family in _kinds(current().entries(FamilyKind)) for name in family.pipelines)


def _of_class(pipeline: type, entries: Sequence[Entry]) -> FamilyKind | None:
    for base in pipeline.__mro__:
        for kind in _kinds(entries):
            if base.__name__ in kind.pipelines:
                return kind
    return None


def _kinds(entries: Sequence[Entry]) -> list[FamilyKind]:
    return [entry.contribution for entry in entries if isinstance(entry.contribution, FamilyKind)]
