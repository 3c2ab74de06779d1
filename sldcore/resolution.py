"""From a policy's names to the objects that run: methods, windows, step hooks, filters, scheduler.

Two halves. :func:`check_policies` finds out without loading anything heavy whether all that a policy names can be had; a command
calls it before it loads a model. :func:`resolve_policy` makes the objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

from sldcore.catalogue import Catalogue, checked_options, current, using
from sldcore.concepts import resolve
from sldcore.contributions import (
    ConceptProvider,
    Contribution,
    GuidanceMethod,
    MarkKind,
    PostFilterKind,
    PromptFilterKind,
    SchedulerKind,
    StepHookKind,
    WindowKind,
)
from sldcore.errors import PluginError, PolicyError, listed
from sldcore.filters.base import Mark, PostFilter, PromptFilter
from sldcore.guidance.base import Guidance, StepHook
from sldcore.guidance.windows import strength_of
from sldcore.policy import FilterUse, GuidanceSpec, Options, PromptFilterUse, SafetyPolicy, Use
from sldcore.schedulers import prediction_of

K = TypeVar("K", PostFilterKind, PromptFilterKind, MarkKind, StepHookKind)


@dataclass(frozen=True, slots=True)
class HookMaker:
    """Makes a step hook of one use anew for each run; equal for policies that name the same with the same options."""

    kind: StepHookKind
    use: Use
    version: str

    @property
    def name(self) -> str:
        """The name that the policy gives."""
        return self.use.use

    def make(self) -> StepHook:
        """A new step hook.

        Raises:
            PluginError: the factory gives something else.
        """
        made = self.kind.create(checked_options(self.kind, self.use.options))
        _require_protocol(self.kind, made, StepHook)
        return made


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a policy names, made. ``spec`` has the method's options complete; ``step_hooks`` make one for each run."""

    kind: GuidanceMethod | None
    method: Guidance | None
    spec: GuidanceSpec | None
    step_hooks: tuple[HookMaker, ...]


def catalogue_for(policies: Sequence[SafetyPolicy]) -> Catalogue:
    """The catalogue in use and the plugin files that ``policies`` name, with their requirements met.

    Raises:
        PluginError: a requirement is not met, or a plugin file cannot be used.
    """
    catalogue = current()
    catalogue.require([each for policy in policies for each in policy.requires])
    for policy in policies:
        policy.require_unchanged()
    return catalogue.with_files([file for policy in policies for file in policy.plugin_files])


def named_by(policy: SafetyPolicy) -> Iterator[tuple[type[Contribution], str]]:
    """Kind and name of everything that a policy names."""
    windows = [use.window for use in policy.concepts if use.window is not None]
    if policy.guidance is not None:
        yield GuidanceMethod, policy.guidance.method
        windows.append(policy.guidance.window)
    yield from ((WindowKind, window.unit) for window in windows)
    for concept in (*policy.concepts, *policy.probed):
        yield from ((ConceptProvider, each.removeprefix("!").partition("/")[0]) for each in concept.use or ())
    if policy.scheduler is not None:
        yield SchedulerKind, policy.scheduler.use
    yield from ((StepHookKind, use.use) for use in policy.step_hooks)
    yield from ((PromptFilterKind, use.use) for use in policy.prompt_filters)
    yield from ((PostFilterKind, use.use) for use in policy.filters)
    yield from ((MarkKind, use.use) for use in policy.marks)


def providers_of(policy: SafetyPolicy) -> dict[str, str]:
    """Who provides what a policy names, such as ``{"filter opennsfw": "sld-filter-opennsfw 0.1.0"}``.

    Raises:
        PluginError: something cannot be had.
    """
    with using(catalogue_for([policy])):
        return {
            f"{kind.kind} {name}": str(current().entry(kind, name).provider)
            for kind, name in named_by(policy)
        }


def check_policies(policies: Sequence[SafetyPolicy]) -> None:
    """Whether everything that ``policies`` name can be had and takes its options; loads nothing heavy.

    Raises:
        ConfigurationError: something is missing, broken or disabled, or does not take its options.
    """
    for policy in policies:
        with using(catalogue_for([policy])):
            _check(policy)


def _check(policy: SafetyPolicy) -> None:
    resolve(policy.concepts)
    resolve(policy.probed)
    if policy.guidance is not None:
        _specified(policy.guidance)
        strength_of(policy.guidance.window)
    for use in policy.concepts:
        if use.window is not None:
            strength_of(use.window)
    if policy.scheduler is not None:
        _chosen(SchedulerKind, policy.scheduler)
    _in_order(StepHookKind, policy.step_hooks)
    _in_order(PromptFilterKind, policy.prompt_filters)
    _in_order(PostFilterKind, policy.filters)
    _in_order(MarkKind, policy.marks)


def resolve_policy(policy: SafetyPolicy) -> Resolved:
    """The objects that guide a run under ``policy``.

    Raises:
        ConfigurationError: as :func:`check_policies`.
    """
    with using(catalogue_for([policy])):
        hooks = tuple(
            HookMaker(kind, use, current().entry(StepHookKind, use.use).provider.version)
            for use, kind in _in_order(StepHookKind, policy.step_hooks)
        )
        if policy.guidance is None:
            return Resolved(None, None, None, hooks)
        kind, spec = _specified(policy.guidance)
        method = kind.create()
        _require_protocol(kind, method, Guidance)
        return Resolved(kind, method, spec, hooks)


def marks_of(policy: SafetyPolicy) -> list[tuple[Use, MarkKind]]:
    """The policy's marks in the order in which they run."""
    with using(catalogue_for([policy])):
        return _in_order(MarkKind, policy.marks)


def filters_of(policy: SafetyPolicy) -> list[tuple[FilterUse, PostFilterKind]]:
    """The policy's filters in the order in which they run."""
    with using(catalogue_for([policy])):
        return _in_order(PostFilterKind, policy.filters)


def prompt_filters_of(policy: SafetyPolicy) -> list[tuple[PromptFilterUse, PromptFilterKind]]:
    """The policy's prompt filters in the order in which they run."""
    with using(catalogue_for([policy])):
        return _in_order(PromptFilterKind, policy.prompt_filters)


def make_filter(kind: PostFilterKind, use: FilterUse) -> PostFilter:
    """The filter of one use.

    Raises:
        PluginError: an option that it does not take, or the plugin gives something else than a filter.
    """
    made = kind.create(checked_options(kind, use.options))
    _require_protocol(kind, made, PostFilter)
    return made


def make_mark(kind: MarkKind, use: Use) -> Mark:
    """As :func:`make_filter`."""
    made = kind.create(checked_options(kind, use.options))
    _require_protocol(kind, made, Mark)
    return made


def make_prompt_filter(kind: PromptFilterKind, use: PromptFilterUse) -> PromptFilter:
    """As :func:`make_filter`."""
    made = kind.create(checked_options(kind, use.options))
    _require_protocol(kind, made, PromptFilter)
    return made


def common_scheduler(policies: Sequence[SafetyPolicy]) -> Use | None:
    """The scheduler that the policies of one call name.

    Raises:
        PolicyError: they name different ones; one call has one scheduler.
    """
    uses = list(dict.fromkeys(policy.scheduler for policy in policies))
    if len(uses) > 1:
        named = ", ".join(sorted("the pipeline's own" if use is None else use.use for use in uses))
        raise PolicyError(f"policies of one call must name the same scheduler, and these name {named}")
    return uses[0] if uses else None


def scheduler_of(policies: Sequence[SafetyPolicy], config: Any) -> Any:
    """The scheduler that the policies of one call name, made from the pipeline's ``config``; None if they name none.

    Raises:
        PolicyError: as :func:`common_scheduler`.
        PluginError: there is no such scheduler.
    """
    if common_scheduler(policies) is None:
        return None
    found = []
    for policy in policies:
        if policy.scheduler is not None:
            with using(catalogue_for([policy])):
                found.append(_chosen(SchedulerKind, policy.scheduler))
    kind, options = found[0]
    if any(other is not kind for other, _ in found):
        raise PolicyError(
            f"policies of one call must name the same scheduler, and '{kind.name}' is another one in another's plugin file"
        )
    made = kind.create(config, options)
    lacking = [name for name in ("set_timesteps", "step", "config") if not hasattr(made, name)]
    if lacking:
        raise PluginError(
            f"scheduler '{kind.name}' is broken: its factory gave {type(made).__name__}, which has no {listed(lacking)}"
        )
    own, other = (prediction_of(dict(each)) for each in (config, made.config))
    if own != other:
        raise PluginError(
            f"scheduler '{kind.name}' is made for models that predict '{other}', and the pipeline's predicts '{own}'; make it "
            f"from the pipeline's config"
        )
    return deepcopy(made)  # a factory may give the same object to everyone


def resolved_spec(spec: GuidanceSpec) -> GuidanceSpec:
    """The guidance with all options of its method.

    Raises:
        PluginError: there is no such method, or it does not take these options.
    """
    return _specified(spec)[1]


def _specified(spec: GuidanceSpec) -> tuple[GuidanceMethod, GuidanceSpec]:
    kind = current().find(GuidanceMethod, spec.method)
    options = checked_options(kind, spec.options).model_dump()
    return kind, spec.model_copy(update={"options": Options(options)})


def _chosen(kind: type[SchedulerKind], use: Use) -> tuple[SchedulerKind, Any]:
    found = current().find(kind, use.use)
    return found, checked_options(found, use.options)


def _require_protocol(kind: Contribution, made: object, protocol: type) -> None:
    if not isinstance(made, protocol):
        raise PluginError(
            f"{kind.kind} '{kind.name}' is broken: its factory gave {type(made).__name__}, which is not a "
            f"{protocol.__name__} (see {protocol.__module__})"
        )


def _in_order(kind: type[K], uses: Sequence[Any]) -> list[tuple[Any, K]]:
    """Uses with their contributions, options checked, in the policy's order as far as ``before`` and ``after`` allow.

    Raises:
        PolicyError: the constraints contradict each other.
        PluginError: one cannot be had, or does not take its options.
    """
    chosen = [(use, current().find(kind, use.use)) for use in uses]
    for use, found in chosen:
        checked_options(found, use.options)
    return [chosen[index] for index in _sorted({index: found for index, (_, found) in enumerate(chosen)})]


def _sorted(kinds: Mapping[int, K]) -> list[int]:
    earlier: dict[int, set[int]] = {index: set() for index in kinds}
    for index, one in kinds.items():
        for other, two in kinds.items():
            if two.name in one.after or one.name in two.before:
                earlier[index].add(other)
    sorter: TopologicalSorter[int] = TopologicalSorter(earlier)
    try:
        sorter.prepare()
    except CycleError as cycle:
        names = [kinds[index].name for index in cycle.args[1]]
        raise PolicyError(
            f"the order of {', '.join(names)} cannot be kept: each must run before the next, in a circle. They say so "
            f"themselves with 'before' and 'after'; leave one of them out of the policy"
        ) from None
    order: list[int] = []
    ready: list[int] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()])
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order
