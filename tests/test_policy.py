from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sldcore.errors import PolicyError
from sldcore.policy import ConceptUse, GuidanceSpec, Preset, SafetyPolicy, SLDOptions, Window

# warm-up, scale, threshold, momentum scale, momentum beta: the table of the paper's model card
TABLE = {
    "weak": (15, 200, 0.0, 0.0, 0.0),
    "medium": (10, 1000, 0.01, 0.3, 0.4),
    "strong": (7, 2000, 0.025, 0.5, 0.7),
    "max": (0, 5000, 1.0, 0.5, 0.7),
    "weak-diffusers": (15, 20, 0.0, 0.0, 0.0),
}

SCHEMA = jsonschema.Draft202012Validator(SafetyPolicy.json_schema())
NOISE = ("weak-noise", "medium-noise", "strong-noise", "max-noise")

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True)
uses = st.one_of(names, st.tuples(names, names | st.just("*")).map("/".join))
words = st.from_regex(r"[A-Za-zäß][^\x00-\x20\x7f-\xa0]{0,8}", fullmatch=True)
weights = st.floats(min_value=0, allow_infinity=False)
concepts = st.one_of(
    st.builds(ConceptUse, use=uses, weight=weights),
    st.builds(ConceptUse, text=words, prefix=st.just("") | words, weight=weights),
)
unit = st.floats(min_value=0, max_value=1)
windows = st.one_of(
    st.integers(0, 1000).flatmap(
        lambda start: st.builds(Window, start=st.just(start), stop=st.none() | st.integers(start + 1, 2000))
    ),
    st.tuples(unit, unit)
    .filter(lambda ends: ends[0] < ends[1])
    .flatmap(
        lambda ends: st.sampled_from(
            [
                Window(unit="fraction", start=ends[0], stop=ends[1]),
                Window(unit="noise", start=ends[1], stop=ends[0]),
            ]
        )
    ),
)
sld_options = st.fixed_dictionaries(
    {},
    optional={
        "scale": st.floats(min_value=0, allow_infinity=False),
        "threshold": finite,
        "momentum_scale": unit,
        "momentum_beta": st.floats(min_value=0, max_value=1, exclude_max=True),
    },
)
other_options = st.dictionaries(names, finite | st.integers() | st.booleans() | words, max_size=3)
guidances = st.one_of(
    st.builds(GuidanceSpec, options=sld_options, window=windows),
    st.builds(GuidanceSpec, method=st.just("other"), options=other_options, window=windows),
)
policies = st.builds(
    SafetyPolicy,
    name=words,
    description=st.just("") | words,
    guidance=guidances,
    concepts=st.lists(concepts, min_size=1, max_size=3).map(tuple),
    on_error=st.sampled_from(["block", "raise"]),
)


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_has_the_values_of_the_model_card(name: str) -> None:
    policy = SafetyPolicy.preset(name)
    assert policy.guidance is not None
    options = policy.guidance.options
    values = (
        policy.guidance.window.start,
        *(options[key] for key in ("scale", "threshold", "momentum_scale", "momentum_beta")),
    )
    assert values == TABLE[name]
    assert policy.guidance.window == Window(unit="steps", start=TABLE[name][0], stop=None)
    assert policy.guidance.method == "sld"


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_uses_the_reference_text_as_one_concept(name: str) -> None:
    policy = SafetyPolicy.preset(name)
    assert policy.concepts == (ConceptUse(use="inappropriate"),)
    assert (policy.name, policy.guides, policy.on_error) == (name, True, "block")


@pytest.mark.parametrize("name", NOISE)
def test_a_preset_in_noise_level_opens_where_the_cards_does_in_50_steps(name: str) -> None:
    own, card = SafetyPolicy.preset(name), SafetyPolicy.preset(name.removesuffix("-noise"))
    assert own.guidance is not None
    assert card.guidance is not None
    assert own.guidance.options == card.guidance.options
    assert own.concepts == card.concepts
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    levels = np.sqrt(1 - np.cumprod(1 - betas))[np.arange(49, -1, -1) * 20 + 1]
    opened = levels <= own.guidance.window.start
    assert opened.tolist() == [step >= card.guidance.window.start for step in range(50)]


def test_gated_is_max_behind_a_gate() -> None:
    own, card = SafetyPolicy.preset("gated").guidance, SafetyPolicy.preset("max").guidance
    assert own is not None
    assert card is not None
    assert own.options == card.options
    assert own.gate is not None
    assert own.gate.then == "restart"
    assert own.gate.concepts == (ConceptUse(use=("inappropriate/*",)),)


def test_off_guides_nothing() -> None:
    off = SafetyPolicy.preset("off")
    assert (off.guidance, off.concepts, off.guides) == (None, (), False)


def test_every_preset_is_found_by_name_and_by_member() -> None:
    assert {preset.value for preset in Preset} == {*TABLE, *NOISE, "off", "gated"}
    assert all(SafetyPolicy.preset(preset) is SafetyPolicy.preset(preset.value) for preset in Preset)


def test_presets_differ_in_their_digests() -> None:
    assert len({SafetyPolicy.preset(preset).digest for preset in Preset}) == len(Preset)


def test_an_unknown_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(
        PolicyError, match=r"'medum'; did you mean 'medium'\? \(available: gated, max, max-noise, medium,"
    ):
        SafetyPolicy.preset("medum")


@given(policies)
def test_a_policy_survives_yaml_with_its_digest(policy: SafetyPolicy) -> None:
    again = SafetyPolicy.parse(policy.dump())
    assert again == policy
    assert again.digest == policy.digest
    assert hash(again) == hash(policy)


@given(policies, st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_keys(policy: SafetyPolicy, random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(part) for part in value] if isinstance(value, list) else value

    text = yaml.safe_dump(shuffled(yaml.safe_load(policy.dump())), sort_keys=False, allow_unicode=True)
    assert SafetyPolicy.parse(text).digest == policy.digest


def test_the_json_schema_is_one() -> None:
    SCHEMA.check_schema(SCHEMA.schema)


@given(policies)
def test_a_dumped_policy_fits_the_json_schema(policy: SafetyPolicy) -> None:
    SCHEMA.validate(yaml.safe_load(policy.dump()))


@pytest.mark.parametrize(
    "content",
    [
        {"guidance": {"options": {"scael": 3}}, "concepts": ["a"]},
        {"guidance": {"window": {"unit": "steps", "begin": 3}}, "concepts": ["a"]},
        {"concept": ["a"]},
        {"guidance": {"options": {"momentum_beta": 1}}, "concepts": ["a"]},
    ],
)
def test_the_json_schema_refuses_what_the_policy_refuses(content: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(content)


def test_the_digest_is_a_fixed_value_for_a_fixed_policy() -> None:
    # A change here breaks every digest that was ever recorded: say so in the changelog.
    content = (
        '{"concepts":[{"use":["inappropriate"]}],'
        '"guidance":{"options":{"momentum_beta":0.4,"momentum_scale":0.3,"scale":1000,"threshold":0.01},'
        '"window":{"start":10}}}'
    )
    assert SafetyPolicy.preset("medium").digest == hashlib.sha256(content.encode()).hexdigest()


def test_name_and_description_do_not_change_the_digest_and_behaviour_does() -> None:
    medium = SafetyPolicy.preset("medium")
    assert medium.replace(name="mine", description="as medium").digest == medium.digest
    assert medium.replace(on_error="raise").digest != medium.digest
    assert medium.replace(concepts=["inappropriate/*"]).digest != medium.digest


def test_whole_numbers_and_floats_have_the_same_digest() -> None:
    by_int = GuidanceSpec(method="other", options={"strength": 2}, window=Window(start=3))
    by_float = GuidanceSpec(method="other", options={"strength": 2.0}, window=Window(start=3.0))
    one, other = (
        SafetyPolicy(guidance=guidance, concepts=(ConceptUse(use="a"),)) for guidance in (by_int, by_float)
    )
    assert one.digest == other.digest


def test_options_of_sld_are_stored_complete_with_the_paper_s_medium_as_default() -> None:
    spec = GuidanceSpec(options={"scale": 7})
    assert dict(spec.options) == {
        "scale": 7.0,
        "threshold": 0.01,
        "momentum_scale": 0.3,
        "momentum_beta": 0.4,
    }
    assert SLDOptions(**spec.options).scale == 7.0


def test_a_plain_string_is_the_name_of_a_concept() -> None:
    text = "guidance: {}\nconcepts: [inappropriate, {use: inappropriate/hate}]\n"
    assert SafetyPolicy.parse(text).concepts == (
        ConceptUse(use="inappropriate"),
        ConceptUse(use="inappropriate/hate"),
    )
    assert ConceptUse.model_validate("a/*") == ConceptUse(use="a/*")


def test_a_noise_window_starts_at_pure_noise_unless_told() -> None:
    assert Window(unit="noise").start == 1.0
    assert Window(unit="noise", start=0.9).start == 0.9
    assert Window(unit="fraction").start == 0.0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("guidence: {}", r"unknown key 'guidence'; did you mean 'guidance'\?"),
        ("guidance: {metod: sld}", r"guidance: unknown key 'metod'; did you mean 'method'\?"),
        (
            "guidance: {window: {strat: 1}}\nconcepts: [a]",
            r"guidance\.window: unknown key 'strat'; did you mean 'start'\?",
        ),
        (
            "guidance: {options: {treshold: 1}}\nconcepts: [a]",
            r"guidance\.options: unknown option.*'treshold'; did you mean 'threshold'\?",
        ),
        (
            "guidance: {}\nconcepts: [a, {use: b, wieght: 2}]",
            r"concepts\.1: unknown key 'wieght'; did you mean 'weight'",
        ),
        (
            "xyzzy: 1",
            r"unknown key 'xyzzy' \(available: concepts, description, filter_mode, filters, guidance, marks, "
            r"name, on_error, plugins, prompt_filters, requires, scheduler, step_hooks\)",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_known_one(
    text: str, complaint: str
) -> None:
    with pytest.raises(PolicyError, match=complaint):
        SafetyPolicy.parse(text)


@pytest.mark.parametrize(
    ("guidance", "complaint"),
    [
        ("{options: {scale: -1}}", r"scale: .*greater than or equal to 0, got -1"),
        ("{options: {scale: .inf}}", r"'scale' must be a finite number.*got inf"),
        ("{options: {threshold: .nan}}", r"'threshold' must be a finite number.*got nan"),
        ("{options: {scale: true}}", r"scale: expected a number, got True"),
        ("{options: {scale: '7'}}", r"scale: expected a number, got '7'"),
        ("{options: {scale: [7]}}", r"'scale' must be a finite number, a text, true or false, got \[7\]"),
        ("{options: {momentum_beta: 1}}", r"momentum_beta: .*less than 1, got 1"),
        ("{options: {momentum_scale: 1.1}}", r"momentum_scale: .*less than or equal to 1, got 1\.1"),
        ("{window: {unit: ramp, start: 3}}", r"start and stop belong to the units fraction, noise, steps"),
        ("{window: {unit: steps, options: {a: 1}}}", r"unit 'steps' has start and stop, and no options"),
        ("{window: {start: -1}}", r"start must be a whole number of steps, 0 or more, got -1"),
        ("{window: {start: 1.5}}", r"start must be a whole number of steps"),
        ("{window: {start: 5, stop: 5}}", r"stop \(5\) must be above start \(5\)"),
        ("{window: {unit: fraction, stop: 10}}", r"stop must be in 0\.\.1 for unit 'fraction', got 10"),
        ("{window: {unit: noise, start: 0.2, stop: 0.8}}", r"stop \(0\.8\) must be below start \(0\.2\)"),
        ("{window: {start: true}}", r"guidance\.window\.start: expected a number, got True"),
        ("{method: ''}", r"guidance\.method"),
        ("sld", r"guidance: .*got 'sld'"),
    ],
)
def test_guidance_that_makes_no_sense_is_refused_with_field_and_value(guidance: str, complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        SafetyPolicy.parse(f"guidance: {guidance}\nconcepts: [inappropriate]")


@pytest.mark.parametrize(
    ("concept", "complaint"),
    [
        ("{}", r"concepts\.0: give exactly one of 'use'.*and 'text'"),
        ("{use: a, text: b}", r"give exactly one"),
        ("{text: '  '}", r"'text' is empty"),
        ("{use: a, prefix: an image of}", r"'prefix' belongs to 'text'"),
        ("{use: a, weight: -1}", r"concepts\.0\.weight: .*greater than or equal to 0, got -1"),
        ("A B", r"concepts\.0\.use\.0: .*got 'A B'"),
        ("a/b/c", r"concepts\.0\.use"),
        ("../a", r"concepts\.0\.use"),
        ("3", r"concepts\.0"),
    ],
)
def test_a_concept_that_makes_no_sense_is_refused(concept: str, complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        SafetyPolicy.parse(f"guidance: {{}}\nconcepts: [{concept}]")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("concepts: [inappropriate]", "concepts are given but 'guidance' is null"),
        ("guidance: {}", "guidance is given but no concepts"),
        ("on_error: ignore", r"on_error: .*'block' or 'raise', got 'ignore'"),
        ("name: 3", r"name: .*got 3"),
    ],
)
def test_a_policy_that_would_not_do_what_it_seems_to_say_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        SafetyPolicy.parse(text)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(PolicyError, match=r"on_error: .*; .*window|window.*; on_error"):
        SafetyPolicy.parse("on_error: x\nguidance: {window: {start: -1}}\nconcepts: [a]")


def test_direct_construction_raises_a_value_error_with_the_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'guidance'"):
        SafetyPolicy(guidanc=None)  # type: ignore[call-arg]


def test_replace_validates_again() -> None:
    medium = SafetyPolicy.preset("medium")
    with pytest.raises(PolicyError, match="policy 'medium': guidance is given but no concepts"):
        medium.replace(concepts=())
    with pytest.raises(PolicyError, match="did you mean 'on_error'"):
        medium.replace(onerror="raise")


def test_a_policy_and_its_parts_cannot_be_changed() -> None:
    policy = SafetyPolicy.preset("max")
    assert policy.guidance is not None
    with pytest.raises(ValidationError):
        policy.name = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        policy.guidance.window.start = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.guidance.options["scale"] = 1.0  # type: ignore[index]


def test_options_do_not_follow_the_dict_they_were_made_from() -> None:
    options = {"a": 1}
    spec = GuidanceSpec(method="other", options=options)
    options["a"] = 2
    assert spec.options["a"] == 1


def test_a_policy_can_be_copied_pickled_and_used_as_a_key() -> None:
    policy = SafetyPolicy.preset("strong")
    copies = [copy.deepcopy(policy), pickle.loads(pickle.dumps(policy)), policy.model_copy(deep=True)]
    assert {policy, *copies} == {policy}


def test_a_policy_file_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "policies" / "strong.yaml"
    text = SafetyPolicy.preset("strong").dump(path)
    assert path.read_text(encoding="utf-8") == text
    assert SafetyPolicy.load(path) == SafetyPolicy.preset("strong")


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("on_error: maybe\n")
    with pytest.raises(PolicyError, match=r"mine\.yaml: on_error"):
        SafetyPolicy.load(path)


def test_the_json_schema_is_json() -> None:
    assert json.loads(json.dumps(SafetyPolicy.json_schema()))["title"] == "SafetyPolicy"


# --- what else a policy names ----------------------------------------------------------------------------------


def test_uses_are_written_as_plain_strings_where_that_says_everything() -> None:
    text = SafetyPolicy.parse("filters: [a, {use: b, on_flag: flag}]\nscheduler: euler").dump()
    content = yaml.safe_load(text)
    assert content["filters"] == ["a", {"use": "b", "on_flag": "flag"}]
    assert content["scheduler"] == "euler"


@pytest.mark.parametrize(
    "part",
    ["filters: [a]", "prompt_filters: [a]", "step_hooks: [a]", "scheduler: a", "requires: [sld-a>=1]"],
)
def test_everything_that_runs_counts_for_the_digest(part: str) -> None:
    assert SafetyPolicy.parse(part).digest != SafetyPolicy.preset("off").digest


def test_the_order_of_filters_counts_for_the_digest() -> None:
    one, other = SafetyPolicy.parse("filters: [a, b]"), SafetyPolicy.parse("filters: [b, a]")
    assert one.digest != other.digest


def test_a_requirement_that_is_none_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"requires\.0: '==1' is not a requirement such as"):
        SafetyPolicy.parse("requires: ['==1']")


def test_plugin_files_lie_beside_the_policy_and_count_with_their_content(tmp_path: Path) -> None:
    file, policy = tmp_path / "mine.py", tmp_path / "policy.yaml"
    file.write_text("SLD_API = 1")
    policy.write_text("plugins: [mine.py]")
    first = SafetyPolicy.load(policy)
    assert first.plugin_files == (file.resolve(),)
    assert SafetyPolicy.parse(first.dump(), folder=tmp_path).digest == first.digest
    digest = first.digest
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text("SLD_API = 1")
    (elsewhere / "policy.yaml").write_text("plugins: [mine.py]")
    assert SafetyPolicy.load(elsewhere / "policy.yaml").digest == digest
    file.write_text("SLD_API = 2")
    assert first.digest == digest
    with pytest.raises(PolicyError, match=r"mine\.py has changed since the policy was read"):
        first.require_unchanged()
    assert SafetyPolicy.load(policy).digest != digest


def test_text_from_anywhere_may_not_name_plugin_files() -> None:
    with pytest.raises(PolicyError, match="must be read from a file, or with folder="):
        SafetyPolicy.parse("plugins: [mine.py]")


@pytest.mark.parametrize("file", ['"a\\0.py"', "mine.txt", "'.'"])
def test_a_plugin_file_that_is_none_is_refused(tmp_path: Path, file: str) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"plugins: [{file}]")
    with pytest.raises(PolicyError, match=r"plugins: .* is (no path|not a Python file)"):
        SafetyPolicy.load(policy)


@pytest.mark.parametrize("requirement", ["a @ https://example.org/a.whl", "a>=1; extra == 'x'"])
def test_a_requirement_that_cannot_be_checked_is_refused(requirement: str) -> None:
    with pytest.raises(PolicyError, match="addresses and extras cannot be checked"):
        SafetyPolicy.parse(f'requires: ["{requirement}"]')


def test_options_that_python_takes_for_equal_are_told_apart() -> None:
    one, other = (
        SafetyPolicy.parse(f"filters: [{{use: a, options: {{b: {value}}}}}]") for value in ("true", "1")
    )
    assert one != other and one.digest != other.digest


@pytest.mark.parametrize("file", ["../mine.py", "/mine.py", "a/../../mine.py"])
def test_a_plugin_file_outside_the_policys_folder_is_refused(tmp_path: Path, file: str) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"plugins: [{file}]")
    with pytest.raises(PolicyError, match="lies outside the policy's folder"):
        SafetyPolicy.load(policy)


def test_unguided_keeps_what_is_reviewed_and_drops_what_guides() -> None:
    policy = SafetyPolicy.preset("max").replace(filters=["a"], step_hooks=["b"], scheduler="euler")
    unguided = policy.unguided
    assert not unguided.guides
    again = policy.replace(filters=[{"use": "a", "on_flag": {"do": "regenerate", "then": "blur"}}])
    assert again.unguided.filters[0].on_flag.do == "blur"
    assert (unguided.filters, unguided.scheduler, unguided.step_hooks) == (
        policy.filters,
        policy.scheduler,
        (),
    )
