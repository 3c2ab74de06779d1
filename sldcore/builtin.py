"""The core's own contributions, through the same hooks as everyone's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import sldcore
from sldcore.catalogue import Entry, Provider
from sldcore.concepts import load_pack, pack_ids
from sldcore.contributions import (
    ConceptProvider,
    Contribution,
    FamilyKind,
    GuidanceMethod,
    MarkKind,
    PostFilterKind,
    PromptFilterKind,
    SchedulerKind,
    WindowKind,
)
from sldcore.families import known
from sldcore.filters import (
    clip_concepts,
    image_classifier,
    playground_glyphs,
    prompt_similarity,
    prompt_terms,
    q16,
    safety_checker,
    visible_label,
    vlm_judge,
)
from sldcore.guidance import kinds
from sldcore.guidance.windows import CORE_WINDOWS, Span
from sldcore.hookspecs import hookimpl
from sldcore.schedulers import scheduler_kinds

SLD_API: Final = 1
PROVIDER: Final = Provider("sldcore", "sldcore", sldcore.__version__)


@hookimpl
def sld_concepts() -> list[ConceptProvider]:
    """The packs in ``concepts/``."""
    return [ConceptProvider(name=name, load=partial(load_pack, name)) for name in pack_ids()]


@hookimpl
def sld_guidance_methods() -> list[GuidanceMethod]:
    """Safe Latent Diffusion and its peers."""
    return list(kinds.KINDS)


@hookimpl
def sld_windows() -> list[WindowKind]:
    """Windows with a start and a stop in steps, fraction of the run or noise level."""
    return [
        WindowKind(name=name, description=(make.__doc__ or "").splitlines()[0], options=Span, create=make)
        for name, make in CORE_WINDOWS.items()
    ]


@hookimpl
def sld_schedulers() -> list[SchedulerKind]:
    """Diffusers' schedulers."""
    return scheduler_kinds()


@hookimpl
def sld_post_filters() -> list[PostFilterKind]:
    """Filters that need nothing but what the core needs."""
    return [
        playground_glyphs.KIND,
        safety_checker.KIND,
        clip_concepts.KIND,
        q16.KIND,
        image_classifier.KIND,
        vlm_judge.KIND,
    ]


@hookimpl
def sld_prompt_filters() -> list[PromptFilterKind]:
    """Filters of prompts."""
    return [prompt_terms.KIND, prompt_similarity.KIND]


@hookimpl
def sld_marks() -> list[MarkKind]:
    """Marks on pictures."""
    return [visible_label.KIND]


@hookimpl
def sld_families() -> list[FamilyKind]:
    """The kinds of pipelines that diffusers has and guidance can act in."""
    return list(known.KINDS)


HOOKS: Final[tuple[Callable[[], list[Any]], ...]] = (
    sld_concepts,
    sld_guidance_methods,
    sld_windows,
    sld_schedulers,
    sld_post_filters,
    sld_prompt_filters,
    sld_marks,
    sld_families,
)


def entries() -> list[Entry]:
    """Everything that the core contributes; loads neither torch nor diffusers."""
    contributed: list[Contribution] = [each for hook in HOOKS for each in hook()]
    return [Entry(each, PROVIDER) for each in contributed]
