"""Families of this group by name: which class serves which pipelines. Free of torch, so that listing them is cheap."""

from __future__ import annotations

from sldcore.contributions import FamilyKind

KINDS: tuple[FamilyKind, ...] = ()
