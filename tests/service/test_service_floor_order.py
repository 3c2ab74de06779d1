"""The order on policies as a service needs it: a partial order that nobody gets below, in any attempt and by no provoked error."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sldcore.concepts import resolve
from sldcore.errors import ConfigurationError
from sldcore.filters.actions import SEVERITY
from sldcore.policy import FilterUse, SafetyPolicy, Window
from sldcore.regeneration import retry_of
from sldcore.resolution import resolved_spec
from sldcore.strictness import at_least, weaker_where
from sldcore.types import Verdict

GLYPHS: dict[str, Any] = {"use": "playground-glyphs", "threshold": 0.5}
BASE: dict[str, Any] = {
    "guidance": {"options": {"scale": 1000}},
    "concepts": ["inappropriate"],
    "filters": [GLYPHS],
}


def policy(**changes: Any) -> SafetyPolicy:
    return SafetyPolicy.model_validate({**BASE, **changes})


def filtered(**changes: Any) -> SafetyPolicy:
    return policy(filters=[{**GLYPHS, **changes}])


def regenerating(action: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Filters that try again."""
    return {"filters": [{**GLYPHS, "on_flag": {"do": "regenerate", **(action or {})}, **changes}]}


# --- errors that can be provoked ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"timeout": 0.001}, "could not review within 0.001 s, below 120 s"),
        ({"thresholds": {"no-such-category": 0.0}}, "may fail on categories that the floor does not name"),
    ],
)
def test_where_errors_are_allowed_none_can_be_provoked(changes: dict[str, Any], reason: str) -> None:
    floor = filtered(on_error="allow")
    found = weaker_where(filtered(on_error="allow", **changes), floor)
    assert any(reason in each for each in found), found
    assert at_least(filtered(on_error="block", **changes), floor)
    assert at_least(filtered(**changes), floor)


def test_a_filter_that_scores_nothing_fails_if_the_policy_judges() -> None:
    floor = policy(filters=[{"use": "playground-glyphs", "on_error": "allow", "only": ["a"]}])
    judged = policy(filters=[{"use": "playground-glyphs", "on_error": "allow", "only": ["a", "b"]}])
    assert any("may fail on categories" in each for each in weaker_where(judged, floor))


def test_more_time_where_errors_are_allowed_is_no_less() -> None:
    assert at_least(filtered(on_error="allow", timeout=240), filtered(on_error="allow"))


# --- further attempts -----------------------------------------------------------------------------------------------


def test_a_stronger_preset_may_be_weaker_in_something() -> None:
    """Scale 1000 goes on to `strong`, whose threshold is 0.025."""
    guidance = {"guidance": {"options": {"scale": 1000, "threshold": 1.0}}}
    floor = policy(**guidance)
    found = weaker_where(policy(**guidance, **regenerating()), floor)
    assert found == ("in a further attempt threshold is 0.025, below 1",)
    assert at_least(policy(**guidance, **regenerating({"stronger": False})), floor)
    assert at_least(policy(**guidance, **regenerating()), policy(**guidance, **regenerating()))


def test_presets_of_the_card_may_be_tried_again() -> None:
    for name in ("weak", "medium", "strong", "max"):
        floor = SafetyPolicy.preset(name).replace(filters=(FilterUse.model_validate(GLYPHS),))
        again = floor.replace(
            filters=tuple(FilterUse.model_validate(each) for each in regenerating()["filters"])
        )
        assert at_least(again, floor)


def test_no_attempt_takes_a_concept_out() -> None:
    uses = {"concepts": ["inappropriate", "violence/gore"]}
    floor = policy(**uses)
    taking = regenerating(concepts={"violence": "!inappropriate"})
    assert weaker_where(policy(**uses, **taking), floor) == (
        "in a further attempt concept 'inappropriate' is missing",
    )
    whole = policy(concepts=["violence/*"])
    assert not at_least(policy(concepts=["violence/*"], **regenerating(concepts={"a": "!violence/*"})), whole)
    assert at_least(
        policy(**uses, **regenerating({"add_concept": False}, concepts={"a": "!inappropriate"})), floor
    )


def test_a_concept_that_is_named_again_counts_as_in_its_pack() -> None:
    uses = {"concepts": [{"use": "violence/*", "weight": 2}]}
    found = weaker_where(policy(**uses, **regenerating()), policy(**uses))
    assert any("in a further attempt concept 'violence/gore' has weight" in each for each in found)
    named = {"concepts": [{"use": "violence/gore", "weight": 2}]}
    assert at_least(policy(**named, **regenerating()), policy(**named))


# --- concepts that take each other's place ---------------------------------------------------------------------------


def test_a_method_that_chooses_among_concepts_keeps_the_floor_s() -> None:
    floor = policy(guidance={"method": "casg"})
    more = policy(guidance={"method": "casg"}, concepts=["inappropriate", "weapons"])
    assert weaker_where(more, floor) == (
        "its concepts are not the floor's, and with 'casg' one may take another's place",
    )
    assert not at_least(policy(guidance={"method": "casg"}, **regenerating()), floor)
    assert at_least(floor, floor)


@pytest.mark.parametrize("guide", ["found", "both"])
def test_a_gate_that_guides_by_what_it_finds_keeps_what_it_may_find(guide: str) -> None:
    gated = {"guidance": {"options": {"scale": 1000}, "gate": {"guide": guide}}}
    found = weaker_where(policy(**gated, concepts=["inappropriate", "weapons"]), policy(**gated))
    assert found == ("its concepts are not the floor's, and its gate may find one in another's place",)


def test_what_a_gate_finds_and_guides_by_is_not_missing_without_the_gate() -> None:
    gate = {"guide": "both", "concepts": ["violence/gore"]}
    floor = policy(guidance={"options": {"scale": 1000}, "gate": gate})
    assert "concept 'violence/gore' is missing" in weaker_where(policy(), floor)
    assert at_least(policy(concepts=["inappropriate", "violence/gore"]), floor)


def test_a_gate_that_only_decides_may_be_left_out() -> None:
    gate = {"concepts": ["violence/gore"]}
    floor = policy(guidance={"options": {"scale": 1000}, "gate": gate})
    assert at_least(policy(), floor)
    assert not at_least(floor, policy())


def test_step_hooks_are_compared_where_nothing_guides() -> None:
    floor = policy(guidance=None, concepts=[])
    assert weaker_where(policy(step_hooks=["recorder"]), floor) == ("its step hooks are not the floor's",)


# --- random policies ------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0.0, 0.4, 1.0])
WINDOWS = st.sampled_from(
    [
        {"start": 0},
        {"start": 5},
        {"start": 5, "stop": 9},
        {"unit": "fraction", "start": 0},
        {"unit": "fraction", "start": 0.5},
        {"unit": "noise", "start": 1.0},
        {"unit": "noise", "start": 0.9, "stop": 0.2},
    ]
)
ACTIONS = st.sampled_from(["flag", "blur", {"do": "pixelate", "area": "boxes"}, "black", "drop", "raise"]) | (
    st.fixed_dictionaries(
        {
            "do": st.just("regenerate"),
            "new_seed": st.just(True),
            "stronger": st.booleans(),
            "add_concept": st.booleans(),
            "then": st.sampled_from(["flag", "blur", "black"]),
        }
    )
)
SLD = st.fixed_dictionaries(
    {
        "options": st.fixed_dictionaries(
            {"scale": st.sampled_from([100, 1500, 4000]), "threshold": st.sampled_from([0.0, 0.02, 1.5])}
        )
    },
    optional={
        "window": WINDOWS,
        "gate": st.sampled_from(
            [{"threshold": 0.2}, {"guide": "both"}, {"guide": "both", "concepts": ["weapons"]}]
        ),
        "savings": st.just({"concept_every": 2}),
    },
)
OTHER = st.fixed_dictionaries({"method": st.sampled_from(["casg", "negative"])})
CONCEPTS = st.lists(
    st.fixed_dictionaries(
        {"use": st.sampled_from(["inappropriate", "violence/*", "violence/gore", "weapons"])},
        optional={"weight": st.sampled_from([0.5, 2.0]), "strength": st.just(3.0), "window": WINDOWS},
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda use: use["use"],
)
FILTERS = st.fixed_dictionaries(
    {"use": st.just("playground-glyphs"), "on_flag": ACTIONS},
    optional={
        "options": st.just({"threshold": 0.7}),
        "threshold": NUMBERS,
        "thresholds": st.dictionaries(st.sampled_from(["a", "b"]), NUMBERS, max_size=2),
        "only": st.sampled_from([["a"], ["a", "b"]]),
        "shadow": st.just(True),
        "on_error": st.sampled_from(["allow", "block", "raise"]),
        "timeout": st.sampled_from([1, 500]),
        "concepts": st.sampled_from([{"a": "!inappropriate"}, {"a": "violence/gore"}, {"a": "weapons"}]),
    },
)
PARTS = {
    "guidance": SLD | OTHER,
    "concepts": CONCEPTS,
    "filters": st.lists(FILTERS, max_size=2),
    "filter_mode": st.sampled_from(["all", "first_flag"]),
    "on_error": st.sampled_from(["block", "raise"]),
    "scheduler": st.none() | st.just("ddim"),
    "marks": st.sampled_from([[], ["visible-label"]]),
    "step_hooks": st.sampled_from([[], ["recorder"]]),
}


@st.composite
def policies(draw: st.DrawFn) -> SafetyPolicy:
    return SafetyPolicy.model_validate({name: draw(part) for name, part in PARTS.items()})


def stricter(content: dict[str, Any], how: str) -> dict[str, Any]:
    """The content of a policy, changed in a way that often makes it stricter."""
    spec, uses = content["guidance"], content["filters"]
    if how == "guidance" and "options" in spec:
        return {
            **content,
            "guidance": {**spec, "options": {"scale": 4000, "threshold": 1.5}, "window": {"start": 0}},
        }
    if how == "gate":
        return {**content, "guidance": {name: spec[name] for name in spec if name not in ("gate", "savings")}}
    if how == "concept" and all(use["use"] != "nudity" for use in content["concepts"]):
        return {**content, "concepts": [*content["concepts"], {"use": "nudity"}]}
    if how == "filter":
        return {**content, "filter_mode": "all", "filters": [*uses, {"use": "safety-checker"}]}
    changes = {"action": {"on_flag": "black"}, "errors": {"on_error": "block"}, "shadow": {"shadow": False}}
    return {**content, "filters": [{**use, **changes.get(how, {})} for use in uses]}


HOW = ("guidance", "gate", "concept", "filter", "action", "errors", "shadow")


@st.composite
def families(draw: st.DrawFn) -> list[SafetyPolicy]:
    """Three policies of which each differs in one or two respects from the one before, and often is stricter."""
    content = {name: draw(part) for name, part in PARTS.items()}
    found = [SafetyPolicy.model_validate(content)]
    for _ in range(2):
        if draw(st.integers(0, 3)):
            content = stricter(content, draw(st.sampled_from(HOW)))
        else:
            name = draw(st.sampled_from([*PARTS]))
            content = {**content, name: draw(PARTS[name])}
        found.append(SafetyPolicy.model_validate(content))
    return found


@given(policies())
@settings(deadline=None, max_examples=60)
def test_reflexive(one: SafetyPolicy) -> None:
    assert weaker_where(one, one) == ()


@given(families())
@settings(deadline=None, max_examples=100)
def test_transitive(three: list[SafetyPolicy]) -> None:
    for one, two, last in permutations(three):
        if at_least(one, two) and at_least(two, last):
            assert weaker_where(one, last) == ()


@given(families())
@settings(deadline=None, max_examples=100)
def test_policies_of_which_each_is_as_strict_as_the_other_do_the_same(three: list[SafetyPolicy]) -> None:
    for one, two in permutations([each.replace(filters=each.filters[:1]) for each in three], 2):
        if at_least(one, two) and at_least(two, one):
            assert behaviour(one) == behaviour(two)


def behaviour(one: SafetyPolicy) -> Any:
    """What a policy with one filter does, without what the order leaves aside."""
    assert one.guidance is not None
    spec = resolved_spec(one.guidance)
    concepts = {
        (used.concept.text, used.concept.weight, used.concept.strength, span(used.window))
        for used in resolve(one.concepts)
    }
    return (
        spec.method,
        spec.options,
        span(spec.window),
        spec.gate,
        spec.savings,
        concepts,
        [reviewed(use) for use in one.filters if not use.shadow],
        one.marks,
        one.step_hooks,
    )


def span(window: Window | None) -> Window | None:
    """A window, None if it is always open, in whatever unit."""
    if window is None or (window.stop is None and window.start == (1 if window.unit == "noise" else 0)):
        return None
    return window


def reviewed(use: FilterUse) -> Any:
    """What becomes of a picture, by the category that a filter scores and by whether it fails."""
    considered = {
        name for name in ("a", "b", "c") if name not in use.ignore and (not use.only or name in use.only)
    }
    limits = {name: use.thresholds.get(name, use.threshold) for name in considered}
    shows = {"flag": "all", "blur": "some", "pixelate": "some"}
    final = use.on_flag.final
    assert final.do in SEVERITY
    return use.use, use.options, limits, shows.get(final.do, "nothing"), final.area, use.on_error == "allow"


@st.composite
def floors_and_attempts(draw: st.DrawFn) -> tuple[SafetyPolicy, SafetyPolicy]:
    """A floor that does not try again, and a policy that does and is like it otherwise, or stricter."""
    content = {name: draw(part) for name, part in PARTS.items()}
    uses = draw(st.lists(FILTERS, min_size=1, max_size=2))
    floor = {**content, "filters": [{**use, "on_flag": "black"} for use in uses]}
    again = {
        **stricter(floor, draw(st.sampled_from(["gate", "concept", "errors", "none"]))),
        "filters": [
            {
                **use,
                "on_flag": {
                    "do": "regenerate",
                    "stronger": draw(st.booleans()),
                    "add_concept": draw(st.booleans()),
                },
            }
            for use in uses
        ],
    }
    return SafetyPolicy.model_validate(again), SafetyPolicy.model_validate(floor)


@given(floors_and_attempts(), st.sets(st.sampled_from(["a", "b"]), min_size=1), st.booleans())
@settings(deadline=None, max_examples=150)
def test_no_attempt_is_guided_less_than_a_floor_that_does_not_try_again(
    pair: tuple[SafetyPolicy, SafetyPolicy], flagged: set[str], guided: bool
) -> None:
    one, floor = pair
    assume(at_least(one, floor))
    for tried in attempts(one, flagged, guided):
        assert not [each for each in weaker_where(tried, floor) if "attempt" not in each]


def attempts(one: SafetyPolicy, flagged: set[str], guided: bool) -> list[SafetyPolicy]:
    """The policies of further attempts, as the engine would make them, if all filters flag each time."""
    found = []
    current = one
    verdict = Verdict("f", "1", True, dict.fromkeys(flagged, 1.0), dict.fromkeys(flagged, 0.5))
    for attempt in (1, 2, 3):
        uses = [use for use in current.filters if not use.shadow]
        retry = retry_of(0, 0, attempt, current, [(use, verdict) for use in uses], guided=guided)
        if retry is None:
            break
        current = retry.policy
        try:
            resolve(current.concepts)
        except ConfigurationError:  # such a picture is withheld
            break
        found.append(current)
    return found
