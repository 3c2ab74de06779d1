"""Which of two policies is stricter: a partial order, for operators that allow requests to add safety and never to take it away.

A policy is at least as strict as a floor if nothing that the floor does is missing, weaker, or of another kind that cannot be
compared:

    guidance   the same method; of ``sld`` no option below the floor's (all of them make it stronger), the window open
               wherever the floor's is; no gate and no savings that the floor has not
    concepts   each of the floor's, by its text, with no less weight and strength, and its window as wide; where one may take
               another's place (methods other than ``sld``, gates that guide by what they find) the same ones
    filters    each of the floor's with the same options; no threshold above, no category left out, nothing in shadow or
               allowed on error that the floor does not allow so, and no milder action: flag < blur, pixelate < the rest.
               What is allowed on error gets no less time and names no further category, so that no error can be provoked
    attempts   the same of what ``regenerate`` turns the policy into: a preset's options, without gate, some concepts
               taken out
    the rest   marks and step hooks as the floor's (a further hook may undo guidance), filter mode, no further plugin files

The relation is reflexive and transitive. Two policies of which each is as strict as the other do the same, but for what this
order leaves aside: names, time limits of what is withheld on error, requirements, schedulers where the floor names none, how often
an action tries again, and shades of what shows nothing of a picture. It does not read texts: whoever may write concepts of their own
can guide away from what is harmless, and whoever chooses the number of steps decides how much of a run is left after a warm-up
in steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sldcore.catalogue import using
from sldcore.concepts import UsedConcept, resolve
from sldcore.policy import Action, ConceptUse, GuidanceSpec, Options, PromptFilterUse, SafetyPolicy, Window
from sldcore.policy_parts import RANGE_UNITS, Scalar
from sldcore.regeneration import LADDER
from sldcore.resolution import catalogue_for, resolved_spec

MILD: Final = {"flag": 0, "blur": 1, "pixelate": 1}
"""Actions that show something of the flagged picture; every other one shows nothing of it."""
WITHHOLDS: Final = 2
COVERS_BOXES: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Guided:
    """How a policy guides: ``spec`` with the method's options complete, its concepts, and those that its gate looks for.

    ``further``: other concepts may be added.
    """

    spec: GuidanceSpec
    concepts: tuple[UsedConcept, ...]
    probed: tuple[UsedConcept, ...]
    further: bool = False


def weaker_where(policy: SafetyPolicy, floor: SafetyPolicy) -> tuple[str, ...]:
    """In what ``policy`` is weaker than ``floor``, or cannot be compared with it; empty if it is at least as strict.

    Raises:
        ConfigurationError: one of them names something that cannot be had.
    """
    errors = policy.on_error, floor.on_error
    return (
        *_guidance(policy, floor),
        *_filters("filter", policy.filters, floor.filters, *errors),
        *_filters("prompt filter", policy.prompt_filters, floor.prompt_filters, *errors),
        *_rest(policy, floor),
    )


def _guidance(policy: SafetyPolicy, floor: SafetyPolicy) -> Iterator[str]:
    if policy.step_hooks != floor.step_hooks:
        yield "its step hooks are not the floor's"
    if floor.guidance is None:
        return
    if policy.guidance is None:
        yield "it does not guide"
        return
    own, other = _guided(policy), _guided(floor)
    if own.spec.method != other.spec.method:
        yield (
            f"its guidance method is '{own.spec.method}', which cannot be compared with '{other.spec.method}'"
        )
        return
    weaker = list(_guides(own, other))
    yield from weaker
    later = _guides(_at_worst(policy, own), _at_worst(floor, other))
    yield from (f"in a further attempt {reason}" for reason in later if reason not in weaker)


def _guided(policy: SafetyPolicy) -> _Guided:
    if policy.guidance is None:
        raise ValueError("the policy does not guide")
    with using(catalogue_for([policy])):
        return _Guided(resolved_spec(policy.guidance), resolve(policy.concepts), resolve(policy.probed))


def _guides(own: _Guided, floor: _Guided) -> Iterator[str]:
    yield from _options(own.spec, floor.spec)
    if not _as_wide(own.spec.window, floor.spec.window):
        yield "its guidance window is not open wherever the floor's is"
    if own.spec.gate is not None and own.spec.gate != floor.spec.gate:
        yield "it has a gate that the floor has not, so some pictures are not guided"
    if own.spec.savings is not None and own.spec.savings != floor.spec.savings:
        yield "it has savings that the floor has not"
    yield from _concepts(own, floor)


def _at_worst(policy: SafetyPolicy, guided: _Guided) -> _Guided:
    """The weakest guidance that further attempts at flagged pictures may have, see :mod:`sldcore.regeneration`."""
    actions = [(use.on_flag, use.concepts) for use in policy.filters if not use.shadow]
    again = [(action, concepts) for action, concepts in actions if action.do == "regenerate"]
    stronger = any(action.stronger for action, _ in again)
    adding = [concepts for action, concepts in again if action.add_concept]
    spec = guided.spec
    if stronger or adding:
        spec = spec.model_copy(update={"gate": None})
    if stronger and spec.method == "sld":
        spec = spec.model_copy(update={"options": _next_rung(spec.options)})
    concepts = _after_adding(policy, adding) if adding else guided.concepts
    return _Guided(spec, concepts, guided.probed, further=bool(adding))


def _next_rung(options: Mapping[str, Scalar]) -> Options:
    """The lower of each of the options of ``sld`` and those of the next preset above, which take their place."""
    for name in LADDER:
        preset = SafetyPolicy.preset(name).guidance
        if preset is not None and float(preset.options["scale"]) > float(options["scale"]):
            return Options(
                {each: min(float(value), float(preset.options[each])) for each, value in options.items()}
            )
    return Options(options)


def _after_adding(policy: SafetyPolicy, adding: Sequence[Mapping[str, Scalar]]) -> tuple[UsedConcept, ...]:
    """What is left of the policy's concepts when others were added.

    What is added by name is as in its pack, also where a ``pack/*`` of the policy had it with more weight; and ``!`` takes out.
    """
    names = {str(name) for concepts in adding for name in concepts.values()}
    out = {name[1:] for name in names if name.startswith("!")}
    with using(catalogue_for([policy])):
        left = resolve([part for use in policy.concepts for part in _parts(use)])
    return tuple(
        used for used in left if not {used.concept.id, f"{used.concept.id.partition('/')[0]}/*"} & out
    )


def _parts(use: ConceptUse) -> Iterator[ConceptUse]:
    """A use, with what it says of a ``pack/*`` apart and raised no further than the pack does."""
    every = tuple(name for name in use.use or () if name.endswith("/*") and not name.startswith("!"))
    others = tuple(name for name in use.use or () if name not in every)
    if every:
        lower = {"weight": min(use.weight, 1.0), "strength": min(use.strength, 1.0)}
        yield use.model_copy(update={"use": every, **lower})
    if others or use.text is not None:
        yield use.model_copy(update={"use": others or None})


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


def _concepts(own: _Guided, floor: _Guided) -> Iterator[str]:
    there = {_content(each): each for each in own.concepts}
    gate = floor.spec.gate
    finds = gate is not None and gate.guide != "policy"
    wanted = (*floor.concepts, *(floor.probed if finds and own.spec.gate is None else ()))
    for each in wanted:
        yield from _concept(there.get(_content(each)), each)
    by_choice = own.spec.method != "sld"
    found = finds and own.spec.gate is not None and gate is not None and not gate.concepts
    changes = own.further and not floor.further
    if by_choice and (changes or set(map(_used, own.concepts)) != set(map(_used, floor.concepts))):
        yield f"its concepts are not the floor's, and with '{own.spec.method}' one may take another's place"
    elif found and set(there) != {_content(each) for each in floor.concepts}:
        yield "its concepts are not the floor's, and its gate may find one in another's place"


def _concept(there: UsedConcept | None, wanted: UsedConcept) -> Iterator[str]:
    name = wanted.concept.id
    if there is None:
        yield f"concept '{name}' is missing"
        return
    if there.concept.weight < wanted.concept.weight:
        yield f"concept '{name}' has weight {there.concept.weight:g}, below {wanted.concept.weight:g}"
    if there.concept.strength < wanted.concept.strength:
        yield f"concept '{name}' has strength {there.concept.strength:g}, below {wanted.concept.strength:g}"
    if not _as_wide(there.window, wanted.window):
        yield f"the window of concept '{name}' is not open wherever the floor's is"


def _used(used: UsedConcept) -> tuple[object, ...]:
    return *_content(used), used.concept.weight, used.concept.strength, used.window


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
    if (own.on_error or own_error) == "allow":
        yield from _allowed(own, floor, (floor.on_error or floor_error) == "allow")
    if _severity(own) < _severity(floor):
        yield f"its action is '{_action(own).do}', milder than '{_action(floor).do}'"
    if not _covers(own, floor):
        yield "it does not look at every category that the floor looks at"
    yield from _thresholds(own, floor)


def _allowed(own: PromptFilterUse, floor: PromptFilterUse, floor_allows: bool) -> Iterator[str]:
    """Errors that show a picture: only where the floor shows it too, and none that can be provoked."""
    if not floor_allows:
        yield "it shows what it could not review"
    if own.timeout < floor.timeout:
        yield f"it shows what it could not review within {own.timeout:g} s, below {floor.timeout:g} s"
    further = _categories(own) - _categories(floor)
    if further or (own.judges and not floor.judges):
        yield "it shows what it could not review, and may fail on categories that the floor does not name"


def _categories(use: PromptFilterUse) -> set[str]:
    return {*use.thresholds, *use.only, *use.ignore}


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
