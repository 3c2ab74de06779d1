"""Which of two policies is stricter: a partial order, for operators that allow requests to add safety and never to take it away.

A policy is at least as strict as a floor if nothing that the floor does is missing, weaker, or of another kind that cannot be
compared:

    guidance   the same method; of ``sld`` no option below the floor's (all of them make it stronger), the window open
               wherever the floor's is; no gate and no savings that the floor has not
    concepts   each of the floor's, by its text, with no less weight and strength, and its window as wide
    filters    each of the floor's with the same options; no threshold above, no category left out, nothing in shadow or
               allowed on error that the floor does not allow so, and no milder action: flag < blur, pixelate < the rest
    the rest   marks and step hooks as the floor's (a further hook may undo guidance), filter mode, no further plugin files

The relation is reflexive and transitive. Two policies of which each is as strict as the other do the same, but for what this
order leaves aside: names, time limits, requirements, schedulers where the floor names none, and how often an action tries again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from sldcore.catalogue import using
from sldcore.concepts import UsedConcept, resolve
from sldcore.policy import Action, GuidanceSpec, PromptFilterUse, SafetyPolicy, Window
from sldcore.policy_parts import RANGE_UNITS
from sldcore.resolution import catalogue_for, resolved_spec

MILD: Final = {"flag": 0, "blur": 1, "pixelate": 1}
"""Actions that show something of the flagged picture; every other one shows nothing of it."""
WITHHOLDS: Final = 2
COVERS_BOXES: Final = 0.5


def weaker_where(policy: SafetyPolicy, floor: SafetyPolicy) -> tuple[str, ...]:
    """In what ``policy`` is weaker than ``floor``, or cannot be compared with it; empty if it is at least as strict.

    Raises:
        ConfigurationError: one of them names something that cannot be had.
    """
    errors = policy.on_error, floor.on_error
    return (
        *_guidance(policy, floor),
        *_concepts(policy, floor),
        *_filters("filter", policy.filters, floor.filters, *errors),
        *_filters("prompt filter", policy.prompt_filters, floor.prompt_filters, *errors),
        *_rest(policy, floor),
    )


def _guidance(policy: SafetyPolicy, floor: SafetyPolicy) -> Iterator[str]:
    if floor.guidance is None:
        if policy.step_hooks != floor.step_hooks:
            yield "its step hooks are not the floor's"
        return
    if policy.guidance is None:
        yield "it does not guide"
        return
    own, other = _specified(policy), _specified(floor)
    if own.method != other.method:
        yield f"its guidance method is '{own.method}', which cannot be compared with '{other.method}'"
        return
    yield from _options(own, other)
    if not _as_wide(own.window, other.window):
        yield "its guidance window is not open wherever the floor's is"
    if own.gate is not None and own.gate != other.gate:
        yield "it has a gate that the floor has not, so some pictures are not guided"
    if own.savings is not None and own.savings != other.savings:
        yield "it has savings that the floor has not"
    if policy.step_hooks != floor.step_hooks:
        yield "its step hooks are not the floor's"


def _specified(policy: SafetyPolicy) -> GuidanceSpec:
    """The guidance with all its options, as the method completes them."""
    if policy.guidance is None:
        raise ValueError("the policy does not guide")
    with using(catalogue_for([policy])):
        return resolved_spec(policy.guidance)


def _options(own: GuidanceSpec, floor: GuidanceSpec) -> Iterator[str]:
    if own.method != "sld":
        if own.options != floor.options:
            yield f"the options of '{own.method}' are not the floor's"
        return
    for name, least in floor.options.items():
        if float(own.options[name]) < float(least):
            yield f"{name} is {own.options[name]:g}, below {least:g}"


def _as_wide(own: Window | None, floor: Window | None) -> bool:
    """Whether a window is open wherever another is; none is always open."""
    if own is None or own == floor or _always(own):
        return True
    if floor is None or own.unit != floor.unit or own.unit not in RANGE_UNITS:
        return False
    if own.unit == "noise":
        return own.start >= floor.start and (own.stop or 0.0) <= (floor.stop or 0.0)
    ends = own.stop is None or (floor.stop is not None and own.stop >= floor.stop)
    return own.start <= floor.start and ends


def _always(window: Window) -> bool:
    if window.unit == "noise":
        return window.start >= 1 and window.stop is None
    return window.unit in RANGE_UNITS and window.start == 0 and window.stop is None


def _concepts(policy: SafetyPolicy, floor: SafetyPolicy) -> Iterator[str]:
    if floor.guidance is None or policy.guidance is None:
        return
    own = {_content(each): each for each in _resolved(policy)}
    for wanted in _resolved(floor):
        there = own.get(_content(wanted))
        name = wanted.concept.id
        if there is None:
            yield f"concept '{name}' is missing"
            continue
        if there.concept.weight < wanted.concept.weight:
            yield f"concept '{name}' has weight {there.concept.weight:g}, below {wanted.concept.weight:g}"
        if there.concept.strength < wanted.concept.strength:
            yield f"concept '{name}' has strength {there.concept.strength:g}, below {wanted.concept.strength:g}"
        if not _as_wide(there.window, wanted.window):
            yield f"the window of concept '{name}' is not open wherever the floor's is"


def _resolved(policy: SafetyPolicy) -> tuple[UsedConcept, ...]:
    with using(catalogue_for([policy])):
        return resolve(policy.concepts)


def _content(used: UsedConcept) -> tuple[str, str, str]:
    concept = used.concept
    return concept.text, concept.prefix, "" if concept.embedding is None else concept.embedding.digest


def _filters(
    kind: str,
    own: Sequence[PromptFilterUse],
    floor: Sequence[PromptFilterUse],
    own_error: str,
    floor_error: str,
) -> Iterator[str]:
    for wanted in floor:
        if wanted.shadow:
            continue
        found = [use for use in own if use.use == wanted.use and use.options == wanted.options]
        reasons = [list(_use(use, wanted, own_error, floor_error)) for use in found]
        if not reasons:
            yield f"{kind} '{wanted.use}' with the floor's options is missing"
        elif all(reasons):
            yield from (f"{kind} '{wanted.use}': {reason}" for reason in min(reasons, key=len))


def _use(own: PromptFilterUse, floor: PromptFilterUse, own_error: str, floor_error: str) -> Iterator[str]:
    if own.shadow:
        yield "it is in shadow and never acts"
    if (own.on_error or own_error) == "allow" and (floor.on_error or floor_error) != "allow":
        yield "it shows what it could not review"
    if _severity(own) < _severity(floor):
        yield f"its action is '{_action(own).do}', milder than '{_action(floor).do}'"
    if not _covers(own, floor):
        yield "it does not look at every category that the floor looks at"
    yield from _thresholds(own, floor)


def _action(use: PromptFilterUse) -> Action:
    action = use.on_flag
    return (action if isinstance(action, Action) else Action(do=action)).final


def _severity(use: PromptFilterUse) -> float:
    action = _action(use)
    severity = MILD.get(action.do, WITHHOLDS)
    return severity - COVERS_BOXES if severity == MILD["blur"] and action.area == "boxes" else severity


def _covers(own: PromptFilterUse, floor: PromptFilterUse) -> bool:
    if own.only:
        return bool(floor.only) and set(floor.only) <= set(own.only)
    if own.ignore:
        return not set(own.ignore) & set(floor.only) if floor.only else set(own.ignore) <= set(floor.ignore)
    return True


def _thresholds(own: PromptFilterUse, floor: PromptFilterUse) -> Iterator[str]:
    """A threshold that is not said is the filter's own, which cannot be compared with a number."""
    names = [*dict.fromkeys([*own.thresholds, *floor.thresholds])]
    for name, mine, limit in (
        ("", own.threshold, floor.threshold),
        *((name, _of(own, name), _of(floor, name)) for name in names),
    ):
        if mine == limit:
            continue
        what = f"the threshold of '{name}'" if name else "its threshold"
        if mine is None or limit is None:
            yield f"{what} is {_said(mine)}, which cannot be compared with {_said(limit)}"
        elif mine > limit:
            yield f"{what} is {mine:g}, above {limit:g}"


def _of(use: PromptFilterUse, category: str) -> float | None:
    given: Mapping[str, object] = use.thresholds
    found = given.get(category, use.threshold)
    return float(found) if isinstance(found, int | float) else None


def _said(threshold: float | None) -> str:
    return "the filter's own" if threshold is None else f"{threshold:g}"


def _rest(policy: SafetyPolicy, floor: SafetyPolicy) -> Iterator[str]:
    same = (policy.filter_mode, policy.filters) == (floor.filter_mode, floor.filters)
    needed = any(not use.shadow for use in floor.filters)
    if policy.filter_mode == "first_flag" and len(policy.filters) > 1 and needed and not same:
        yield "it stops at the first filter that flags, before one of the floor's may have looked"
    if floor.scheduler is not None and policy.scheduler != floor.scheduler:
        yield f"its scheduler is not the floor's '{floor.scheduler.use}'"
    for wanted in floor.marks:
        if wanted not in policy.marks:
            yield f"mark '{wanted.use}' with the floor's options is missing"
    if further := [file for file in policy.plugins if file not in floor.plugins]:
        yield f"it brings plugin files that the floor has not: {', '.join(further)}"


def at_least(policy: SafetyPolicy, floor: SafetyPolicy) -> bool:
    """True if ``policy`` is at least as strict as ``floor``.

    Raises:
        ConfigurationError: as :func:`weaker_where`.
    """
    return not weaker_where(policy, floor)
