"""The order on policies: reflexive, transitive, and never fooled by what is weaker in one respect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sldcore.policy import SafetyPolicy
from sldcore.strictness import at_least, weaker_where

LADDER = ("off", "weak-diffusers", "weak", "medium", "strong", "max")
STRONG: dict[str, Any] = {
    "guidance": {
        "options": {"scale": 2000, "threshold": 0.02, "momentum_scale": 0.4},
        "window": {"start": 5},
    },
    "concepts": [{"use": "inappropriate", "weight": 1.0}, "violence/gore"],
    "filters": [
        {"use": "playground-glyphs", "threshold": 0.5, "on_flag": "black"},
        {"use": "clip-concepts", "thresholds": {"gore": 0.3}, "only": ["gore", "hate"], "on_flag": "blur"},
    ],
    "prompt_filters": [{"use": "prompt-terms", "options": {"terms": "gore"}}],
    "marks": ["visible-label"],
}


def policy(**changes: Any) -> SafetyPolicy:
    return SafetyPolicy.model_validate({**STRONG, **changes})


FLOOR = policy()


def guidance(**changes: Any) -> dict[str, Any]:
    own = STRONG["guidance"]
    options = {**own["options"], **changes.pop("options", {})}
    return {**own, "options": options, **changes}


def first_filter(**changes: Any) -> list[dict[str, Any]]:
    return [{**STRONG["filters"][0], **changes}, STRONG["filters"][1]]


def second_filter(**changes: Any) -> list[dict[str, Any]]:
    own = {name: value for name, value in {**STRONG["filters"][1], **changes}.items() if value is not None}
    return [STRONG["filters"][0], own]


def test_the_presets_of_the_model_card_are_a_ladder() -> None:
    for low, weaker in enumerate(LADDER):
        for high, stronger in enumerate(LADDER):
            expected = high >= low
            assert at_least(SafetyPolicy.preset(stronger), SafetyPolicy.preset(weaker)) == expected


def test_what_guides_some_pictures_only_is_no_substitute_for_what_guides_all() -> None:
    assert weaker_where(SafetyPolicy.preset("gated"), SafetyPolicy.preset("weak"))
    reasons = weaker_where(SafetyPolicy.preset("gated"), SafetyPolicy.preset("max"))
    assert any("gate" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"guidance": None, "concepts": []}, "does not guide"),
        ({"guidance": {"method": "casg"}}, "cannot be compared"),
        ({"guidance": guidance(options={"scale": 1999})}, "scale is 1999, below 2000"),
        ({"guidance": guidance(options={"threshold": 0.01})}, "threshold is 0.01"),
        ({"guidance": guidance(window={"start": 6})}, "window is not open"),
        ({"guidance": guidance(window={"start": 5, "stop": 40})}, "window is not open"),
        ({"guidance": guidance(window={"unit": "fraction", "start": 0.01})}, "window is not open"),
        ({"guidance": guidance(gate={"threshold": 0.1})}, "gate that the floor has not"),
        ({"guidance": guidance(savings={"concept_every": 2})}, "savings"),
        ({"concepts": ["inappropriate"]}, "concept 'violence/gore' is missing"),
        ({"concepts": [{"use": "inappropriate", "weight": 0.9}, "violence/gore"]}, "has weight 0.9"),
        ({"concepts": [{"use": "inappropriate", "strength": 0.9}, "violence/gore"]}, "has strength 0.9"),
        (
            {"concepts": ["inappropriate", {"use": "violence/gore", "window": {"start": 3}}]},
            "window of concept 'violence/gore'",
        ),
        ({"filters": STRONG["filters"][1:]}, "filter 'playground-glyphs' .* missing"),
        ({"filters": first_filter(threshold=0.6)}, "threshold is 0.6, above 0.5"),
        ({"filters": first_filter(threshold=None)}, "the filter's own, which cannot be compared"),
        ({"filters": first_filter(shadow=True)}, "in shadow"),
        ({"filters": first_filter(on_error="allow")}, "could not review"),
        ({"filters": first_filter(on_flag="blur")}, "'blur', milder than 'black'"),
        ({"filters": first_filter(ignore=["violence"])}, "every category"),
        ({"filters": first_filter(on_flag={"do": "regenerate", "then": "flag"})}, "'flag', milder"),
        ({"filters": second_filter(only=["gore"])}, "every category"),
        ({"filters": second_filter(only=None, ignore=["hate"])}, "every category"),
        ({"filters": second_filter(thresholds={"gore": 0.31})}, "threshold of 'gore' is 0.31"),
        ({"filters": second_filter(on_flag={"do": "blur", "area": "boxes"})}, "milder"),
        ({"filter_mode": "first_flag"}, "stops at the first filter"),
        ({"prompt_filters": []}, "prompt filter 'prompt-terms'"),
        ({"prompt_filters": [{"use": "prompt-terms", "options": {"terms": "other"}}]}, "floor's options"),
        ({"prompt_filters": [{**STRONG["prompt_filters"][0], "on_flag": "flag"}]}, "milder"),
        ({"marks": []}, "mark 'visible-label'"),
        ({"step_hooks": ["recorder"]}, "step hooks"),
    ],
)
def test_what_is_weaker_in_one_respect_is_weaker(changes: dict[str, Any], reason: str) -> None:
    found = weaker_where(policy(**changes), FLOOR)
    assert any(re.search(reason, each) for each in found), found


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another", "description": "with words"},
        {"guidance": guidance(options={"scale": 5000, "threshold": 1.0, "momentum_scale": 0.5})},
        {"guidance": guidance(window={"start": 0})},
        {"guidance": guidance(window={"unit": "fraction", "start": 0})},
        {"guidance": guidance(window={"unit": "noise", "start": 1.0})},
        {"concepts": ["violence/gore", {"use": "inappropriate", "weight": 2}, "violence/war"]},
        {"filters": [*STRONG["filters"][::-1], "safety-checker"]},
        {"filters": first_filter(threshold=0.2, on_flag="raise")},
        {"filters": first_filter(on_flag={"do": "regenerate", "then": "black"})},
        {"filters": second_filter(only=None)},
        {"filters": second_filter(only=["gore", "hate", "more"], on_flag="pixelate")},
        {"filters": second_filter(only=None, ignore=["more"])},
        {"on_error": "raise"},
        {"scheduler": "ddim"},
    ],
)
def test_what_is_added_makes_no_policy_weaker(changes: dict[str, Any]) -> None:
    assert weaker_where(policy(**changes), FLOOR) == ()


def test_a_floor_that_names_its_scheduler_keeps_it() -> None:
    assert at_least(policy(scheduler="ddim"), policy(scheduler="ddim"))
    assert weaker_where(policy(), policy(scheduler="ddim"))


@pytest.mark.sldcore_plugins
def test_plugin_files_that_the_floor_has_not_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("SLD_API = 1\n")
    own = SafetyPolicy.parse("plugins: [mine.py]", folder=tmp_path)
    assert weaker_where(own, SafetyPolicy()) == ("it brings plugin files that the floor has not: mine.py",)
    assert at_least(own, own)


def test_a_filter_in_shadow_is_no_part_of_a_floor() -> None:
    assert at_least(policy(filters=STRONG["filters"][1:]), policy(filters=first_filter(shadow=True)))


# --- a partial order ------------------------------------------------------------------------------------------

numbers = st.sampled_from([0.0, 0.25, 0.5, 1.0])
windows = st.sampled_from(
    [
        {"start": 0},
        {"start": 5},
        {"start": 5, "stop": 9},
        {"unit": "fraction", "start": 0.5},
        {"unit": "noise", "start": 0.9},
    ]
)
guidances = st.none() | st.fixed_dictionaries(
    {
        "options": st.fixed_dictionaries({"scale": st.sampled_from([100, 2000]), "momentum_scale": numbers}),
        "window": windows,
        "gate": st.none() | st.just({"threshold": 0.2}),
        "savings": st.none() | st.just({"concept_every": 2}),
    }
)
filters = st.lists(
    st.fixed_dictionaries(
        {
            "use": st.just("playground-glyphs"),
            "threshold": st.none() | numbers,
            "thresholds": st.dictionaries(st.sampled_from(["a", "b"]), numbers),
            "shadow": st.booleans(),
            "on_error": st.sampled_from([None, "allow", "block"]),
            "on_flag": st.sampled_from(
                ["flag", "blur", {"do": "blur", "area": "boxes"}, "pixelate", "black", "drop"]
            ),
        },
        optional={"only": st.just(["a"])},
    ),
    max_size=2,
)


@st.composite
def policies(draw: st.DrawFn) -> SafetyPolicy:
    guides = draw(guidances)
    concepts = draw(
        st.lists(
            st.fixed_dictionaries({"text": st.sampled_from(["fire", "smoke"]), "weight": st.sampled_from([1.0, 2.0])}),
            min_size=1, max_size=2, unique_by=lambda use: use["text"],
        )
    )  # fmt: skip
    return SafetyPolicy.model_validate(
        {
            "guidance": guides,
            "concepts": concepts if guides else [],
            "filters": draw(filters),
            "filter_mode": draw(st.sampled_from(["all", "first_flag"])),
        }
    )


@given(policies())
@settings(deadline=None, max_examples=150)
def test_every_policy_is_as_strict_as_itself(one: SafetyPolicy) -> None:
    assert weaker_where(one, one) == ()


@given(policies(), policies(), policies())
@settings(deadline=None, max_examples=400)
def test_what_is_stricter_than_something_stricter_is_stricter(
    one: SafetyPolicy, two: SafetyPolicy, three: SafetyPolicy
) -> None:
    if at_least(one, two) and at_least(two, three):
        assert weaker_where(one, three) == ()


@given(policies(), filters)
@settings(deadline=None, max_examples=150)
def test_a_further_filter_makes_no_policy_weaker(one: SafetyPolicy, more: list[dict[str, Any]]) -> None:
    added = one.replace(filters=(*one.filters, *more), filter_mode="all")
    assert weaker_where(added, one) == ()
