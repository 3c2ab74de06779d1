"""Which of two policies guides more strictly: method, options, window, gate, savings and concepts, in every attempt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sldcore.catalogue import using
from sldcore.concepts import UsedConcept, resolve
from sldcore.policy import ConceptUse, GuidanceSpec, Options, SafetyPolicy, Window
from sldcore.policy_parts import RANGE_UNITS, Scalar
from sldcore.regeneration import LADDER
from sldcore.resolution import catalogue_for, resolved_spec
from sldcore.splitting import terms_of

BETA: Final = "momentum_beta"
SLOWER: Final = ((0.3, 0.4), (0.5, 0.7))
"""Scale and beta of momentum in the presets medium and strong: strong's builds up later, and to more than twice as much."""


@dataclass(frozen=True, slots=True)
class _Guided:
    """How a policy guides: ``spec`` with the method's options complete, its concepts, and those that its gate looks for.

    ``further``: other concepts may be added.
    """

    spec: GuidanceSpec
    concepts: tuple[UsedConcept, ...]
    probed: tuple[UsedConcept, ...]
    further: bool = False


def weaker_guidance(policy: SafetyPolicy, floor: SafetyPolicy) -> Iterator[str]:
    """In what the guidance of a policy is weaker than a floor's.

    Raises:
        ConfigurationError: one of them names something that cannot be had.
    """
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
        if name != BETA and float(own.options[name]) < float(least):
            yield f"{name} is {own.options[name]:g}, below {least:g}"
    if not _remembers(_momentum(own), _momentum(floor)):
        yield f"{BETA} is {own.options[BETA]:g}, which cannot be compared with {floor.options[BETA]:g}"


def _momentum(spec: GuidanceSpec) -> tuple[float, float]:
    return float(spec.options["momentum_scale"]), float(spec.options[BETA])


def _remembers(own: tuple[float, float], floor: tuple[float, float]) -> bool:
    """Whether the momentum of ``sld``, its scale and beta, may stand in for another; which scale is higher is looked at elsewhere.

    Beta is how slowly it builds up: close to 1 there is none in a whole run. So another one is comparable only if the floor has no
    momentum, or as one of the presets follows the other.
    """
    (low, fast), (high, slow) = SLOWER
    follows = floor[0] <= low and floor[1] == fast and own[0] >= high and own[1] == slow
    return own[1] == floor[1] or floor[0] == 0 or follows


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
    yield from _parts_taken(own.concepts, floor.concepts)
    by_choice = own.spec.method != "sld"
    found = finds and own.spec.gate is not None and gate is not None and not gate.concepts
    changes = own.further and not floor.further
    if by_choice and (changes or set(map(_used, own.concepts)) != set(map(_used, floor.concepts))):
        yield f"its concepts are not the floor's, and with '{own.spec.method}' one may take another's place"
    elif found and set(there) != {_content(each) for each in floor.concepts}:
        yield "its concepts are not the floor's, and its gate may find one in another's place"


def _parts_taken(own: Sequence[UsedConcept], floor: Sequence[UsedConcept]) -> Iterator[str]:
    """Further concepts that a part of one of the floor's could be taken for, and that are weaker.

    A text that is longer than the text encoder's window becomes several rows, and of rows with the same text the first counts, see
    :mod:`sldcore.encoding`: so ``pack/concept`` may stand for a part of ``pack``.
    """
    places = {_content(each): place for place, each in enumerate(own)}
    for number, wanted in enumerate(floor):
        known = set(map(_content, floor[:number]))
        for each in own[: places.get(_content(wanted), 0)]:
            if _content(each) not in known and _terms(each) & _terms(wanted) and [*_weaker(each, wanted)]:
                yield (
                    f"concept '{each.concept.id}' has a part of the text of '{wanted.concept.id}', comes before it and is weaker; "
                    "name it after that"
                )


def _terms(used: UsedConcept) -> set[str]:
    """The parts of a concept's text at whose borders it may be split, with and without its prefix."""
    text, prefix = used.concept.text, used.concept.prefix
    terms = used.concept.terms or terms_of(text.removeprefix(prefix).strip())
    return {*terms, *terms_of(text), *(f"{prefix} {term}" for term in terms)}


def _concept(there: UsedConcept | None, wanted: UsedConcept) -> Iterator[str]:
    if there is None:
        yield f"concept '{wanted.concept.id}' is missing"
    else:
        yield from _weaker(there, wanted)


def _weaker(there: UsedConcept, wanted: UsedConcept) -> Iterator[str]:
    name = wanted.concept.id
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
