"""What plugins, and the core itself, contribute: named, typed and cheap to make.

A contribution is a name, a description, the model of its options and a factory. Everything heavy (torch, weights)
belongs into the factory: contributions are made when names are listed, objects only when a policy names them.

    Contribution
    ├── ConceptProvider     a concept pack            policy: concepts: [NAME, NAME/concept]
    ├── GuidanceMethod      a guidance method         policy: guidance: {method: NAME}
    ├── WindowKind          when, how strongly        policy: guidance: {window: {unit: NAME}}
    ├── SchedulerKind       a noise scheduler         policy: scheduler: NAME
    ├── PostFilterKind      a review of pictures      policy: filters: [NAME]
    ├── PromptFilterKind    a review of prompts       policy: prompt_filters: [NAME]
    ├── MarkKind            a mark on pictures        policy: marks: [NAME]
    ├── StepHookKind        code in the loop          policy: step_hooks: [NAME]
    ├── FamilyKind          a kind of pipeline        found by the class of the pipeline
    └── Command             a command of ``sld``      command line: sld NAME
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import BaseModel

from sldcore.documents import Strict
from sldcore.errors import PluginError
from sldcore.policy_parts import NAME

if TYPE_CHECKING:
    from sldcore.concepts import ConceptPack
    from sldcore.families.base import Family
    from sldcore.filters.base import Mark, PostFilter, PromptFilter
    from sldcore.guidance.base import Guidance, StepHook
    from sldcore.types import Step


class NoOptions(Strict):
    """The options of a contribution that has none."""


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """Something that a policy can name.

    Attributes:
        name: lower-case letters, digits, ``-``, ``_`` and ``+``; unique among contributions of its kind.
        description: one line for listings.
        options: pydantic model that checks and completes the options that a policy gives.

    Raises:
        PluginError: the name is malformed, or ``options`` is not a pydantic model.
    """

    kind: ClassVar[str] = "contribution"

    name: str
    description: str = ""
    options: type[BaseModel] = NoOptions

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(NAME, self.name):
            raise PluginError(
                f"{self.name!r} cannot be the name of a {self.kind}; use lower-case letters, digits, '-', '_' and '+'"
            )
        if not (isinstance(self.options, type) and issubclass(self.options, BaseModel)):
            raise PluginError(f"options of {self.kind} '{self.name}' must be a pydantic model class")


def _check_names(contribution: Contribution, field: str, given: object) -> None:
    if not (isinstance(given, tuple) and all(isinstance(each, str) for each in given)):
        raise PluginError(
            f"{field} of {contribution.kind} '{contribution.name}' must be a tuple of names such as "
            f"('a',), and is {given!r}"
        )


@dataclass(frozen=True, kw_only=True)
class ConceptProvider(Contribution):
    """A concept pack; ``load`` returns it and its id must be ``name``."""

    kind: ClassVar[str] = "concept pack"
    load: Callable[[], ConceptPack]


@dataclass(frozen=True, kw_only=True)
class GuidanceMethod(Contribution):
    """A guidance method; ``create`` returns an object of protocol :class:`sldcore.guidance.base.Guidance`.

    The method gets its samples' options as ``sample.spec.options``, checked and completed by ``options``.
    """

    kind: ClassVar[str] = "guidance method"
    create: Callable[[], Guidance]


@dataclass(frozen=True, kw_only=True)
class WindowKind(Contribution):
    """When guidance acts and how strongly; ``create(options)`` returns a function from step to strength in 0..1.

    The function is evaluated for every step before the first one: 0 where guidance does not act.
    """

    kind: ClassVar[str] = "window"
    create: Callable[[Any], Callable[[Step], float]]


@dataclass(frozen=True, kw_only=True)
class SchedulerKind(Contribution):
    """A diffusers scheduler; ``create(config, options)`` makes it from the config of the pipeline's own."""

    kind: ClassVar[str] = "scheduler"
    create: Callable[[Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class _Ordered(Contribution):
    """Part of a chain whose order is the policy's; ``before`` and ``after`` name others that it must not be after or before."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names(self, "before", self.before)
        _check_names(self, "after", self.after)


@dataclass(frozen=True, kw_only=True)
class PostFilterKind(_Ordered):
    """A review of decoded pictures; ``create(options)`` returns a :class:`sldcore.filters.base.PostFilter`."""

    kind: ClassVar[str] = "filter"
    create: Callable[[Any], PostFilter]


@dataclass(frozen=True, kw_only=True)
class PromptFilterKind(_Ordered):
    """A review of prompts; ``create(options)`` returns a :class:`sldcore.filters.base.PromptFilter`."""

    kind: ClassVar[str] = "prompt filter"
    create: Callable[[Any], PromptFilter]


@dataclass(frozen=True, kw_only=True)
class MarkKind(_Ordered):
    """A mark on pictures that are shown; ``create(options)`` returns a :class:`sldcore.filters.base.Mark`."""

    kind: ClassVar[str] = "mark"
    create: Callable[[Any], Mark]


@dataclass(frozen=True, kw_only=True)
class StepHookKind(_Ordered):
    """Code in the denoising loop; ``create(options)`` returns a :class:`sldcore.guidance.base.StepHook`.

    A new one is made for every run, so it may keep the run's state.
    """

    kind: ClassVar[str] = "step hook"
    create: Callable[[Any], StepHook]


@dataclass(frozen=True, kw_only=True)
class FamilyKind(Contribution):
    """A kind of pipeline; ``create`` returns a :class:`sldcore.families.base.Family` for the classes in ``pipelines``."""

    kind: ClassVar[str] = "family"
    pipelines: tuple[str, ...]
    create: Callable[[], Family]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names(self, "pipelines", self.pipelines)


@dataclass(frozen=True, kw_only=True)
class Command(Contribution):
    """A command ``sld NAME``; ``create`` returns a ``typer.Typer`` or a click command."""

    kind: ClassVar[str] = "command"
    create: Callable[[], Any]


KINDS: Final[tuple[type[Contribution], ...]] = (
    ConceptProvider,
    GuidanceMethod,
    WindowKind,
    SchedulerKind,
    PostFilterKind,
    PromptFilterKind,
    MarkKind,
    StepHookKind,
    FamilyKind,
    Command,
)
"""Every kind, in the order of :mod:`sldcore.hookspecs`."""
