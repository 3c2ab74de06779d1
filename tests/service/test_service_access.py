"""Who may use which policy, and what a request may bring of its own: seen from the side of whoever wants more."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sldcore.documents import to_yaml
from sldcore.errors import ConfigurationError, PolicyError
from sldcore.policy import SafetyPolicy
from sldcore.policy_parts import FilterUse, Gate, GuidanceSpec
from sldcore.service.rights.access import Access, Forbidden
from sldcore.service.rights.inline import FREE_IN_FILTERS, InlinePolicies
from sldcore.service.rights.keys import Key, KeyFile, Keys, hash_of, write_keys
from sldcore.service.settings import ServiceSettings
from sldcore.strictness import weaker_where

STANDARD: dict[str, Any] = {
    "guidance": {"options": {"scale": 1000}, "window": {"start": 5}},
    "concepts": ["inappropriate", {"text": "a corporate logo"}],
    "filters": [
        {"use": "playground-glyphs", "options": {"threshold": 0.6}, "threshold": 0.5, "timeout": 30},
    ],
    "prompt_filters": [{"use": "prompt-terms", "options": {"terms": "gore, blood", "category": "list"}}],
    "marks": [{"use": "visible-label", "options": {"text": "made by machine"}}],
    "scheduler": "ddim",
}
RICH: dict[str, Any] = {
    **STANDARD,
    "filters": [
        {
            "use": "playground-glyphs",
            "options": {"threshold": 0.6},
            "threshold": 0.5,
            "timeout": 30,
            "on_flag": {"do": "regenerate", "attempts": 2},
        },
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policies")
    (folder / "standard.yaml").write_text(to_yaml(STANDARD))
    (folder / "rich.yaml").write_text(to_yaml(RICH))
    return folder


def service(folder: Path, **changes: Any) -> ServiceSettings:
    policies = {
        "standard": str(folder / "standard.yaml"),
        "rich": str(folder / "rich.yaml"),
        "strong": "strong",
        "max": "max",
        "weak": "weak",
        "off": "off",
    }
    return ServiceSettings(**{"policies": policies, **changes})


def key(**fields: Any) -> Key:
    return Key(id="one", sha256=hash_of("one"), created=datetime(2026, 1, 1, tzinfo=UTC), **fields)


INLINE = key(inline=True, default_policy="standard")
"""May send policies at least as strict as ``standard``, its default."""
FREE = key(inline=True, default_policy="off")
"""May send whatever a request can bring: its floor asks for nothing."""


@pytest.fixture(scope="module")
def access(folder: Path) -> Access:
    return Access(service(folder))


def own(**changes: Any) -> dict[str, Any]:
    """``standard`` as a request may write it, options left out."""
    plain: dict[str, Any] = {
        **STANDARD,
        "filters": [{"use": "playground-glyphs", "threshold": 0.5}],
        "prompt_filters": ["prompt-terms"],
        "marks": ["visible-label"],
    }
    return {**plain, **changes}


# --- names ---------------------------------------------------------------------------------------------------------


def test_policies_have_the_names_that_clients_use(access: Access) -> None:
    assert access.policy_for(key(), "standard").name == "standard"
    assert access.policy_for(key(), "max").digest == SafetyPolicy.preset("max").digest


@pytest.mark.parametrize(
    ("fields", "default"),
    [
        ({}, "standard"),
        ({"default_policy": "max"}, "max"),
        ({"policies": ["max", "strong"]}, "strong"),
        ({"floor": "max"}, "max"),
    ],
)
def test_who_names_none_gets_the_default(access: Access, fields: dict[str, Any], default: str) -> None:
    own_key = key(**fields)
    access.check_keys([own_key])
    assert access.default_policy(own_key) == default
    assert access.policy_for(own_key, None).name == default


def test_the_service_s_default_comes_before_the_first(folder: Path) -> None:
    access = Access(service(folder, default_policy="max"))
    assert access.policy_for(access.everybody, None).name == "max"
    assert access.policy_for(key(policies=["weak"]), None).name == "weak"


def test_a_key_without_policies_may_use_those_above_its_floor(access: Access) -> None:
    assert list(access.policies_of(key())) == ["standard", "rich", "strong", "max", "weak", "off"]
    assert list(access.policies_of(key(floor="strong"))) == ["strong", "max"]
    assert list(access.policies_of(key(policies=["max", "weak"]))) == ["max", "weak"]


@pytest.mark.parametrize(
    "asked", ["weak", "off", "none", "", "../standard", "standard.yaml", "max\n", "\ud800"]
)
def test_other_names_are_refused_with_those_that_may_be_used(access: Access, asked: str) -> None:
    with pytest.raises(Forbidden, match=r"this key may use no policy .*\(available: max, strong\)"):
        access.policy_for(key(policies=["max", "strong"]), asked)


def test_a_preset_that_is_not_listed_is_refused(access: Access) -> None:
    with pytest.raises(Forbidden):
        access.policy_for(key(), "medium")


def test_a_file_that_exists_is_no_name(access: Access, folder: Path) -> None:
    with pytest.raises(Forbidden):
        access.policy_for(INLINE, str(folder / "standard.yaml"))


@pytest.mark.parametrize("asked", [5, ["max"], True, b"max"])
def test_what_is_neither_name_nor_policy_is_refused(access: Access, asked: Any) -> None:
    with pytest.raises(PolicyError, match="expected the name of a policy, or a policy"):
        access.policy_for(INLINE, asked)


def test_models_and_limits_are_the_tighter_ones(folder: Path) -> None:
    models = {"toy": {"min_steps": 10, "max_steps": 80}, "other": {}}
    access = Access(service(folder, models=models, limits={"pictures": 8}))
    limited = key(models=["other"], limits={"steps": 30, "pictures": 20, "pictures_per_minute": 5})
    assert list(access.models_of(limited)) == ["other"]
    assert list(access.models_of(key())) == ["toy", "other"]
    limits = access.limits_of(limited, access.models_of(key())["toy"])
    assert (limits.pictures, limits.min_steps, limits.max_steps) == (5, 10, 30)
    assert limits.prompt_characters == 4000


# --- at start and when keys change -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mediun", "policies.x: 'mediun' is neither a preset nor a file; did you mean 'medium'?"),
        ("none.yaml", "policies.x: 'none.yaml' is neither a preset nor a file"),
        ("filters: [nothing-such]", "policies.x: filter 'nothing-such'"),
        ("concepts: [nothing-such]", "policies.x: "),
        ("- a", "expected a mapping"),
    ],
)
def test_policies_that_cannot_be_had_stop_the_start(tmp_path: Path, source: str, message: str) -> None:
    if ":" in source or source.startswith("-"):
        (tmp_path / "x.yaml").write_text(source)
        source = str(tmp_path / "x.yaml")
    with pytest.raises(ConfigurationError) as raised:
        Access(ServiceSettings(policies={"x": source}))
    assert message in str(raised.value)


def test_a_named_policy_below_the_service_s_floor_stops_the_start(folder: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"policy 'weak' is weaker than the floor 'strong': scale is 200"
    ):
        Access(service(folder, policies={"strong": "strong", "max": "max", "weak": "weak"}, floor="strong"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policies": ["strng"]}, "policy 'strng' is not in the settings; did you mean 'strong'?"),
        ({"floor": "x"}, "policy 'x' is not in the settings"),
        ({"default_policy": "x"}, "policy 'x' is not in the settings"),
        ({"models": ["x"]}, r"model 'x' is not in the settings \(available: playground\)"),
        ({"policies": ["max", "weak"], "floor": "strong"}, "policy 'weak' is weaker than the floor 'strong'"),
        ({"default_policy": "weak", "floor": "strong"}, "policy 'weak' is weaker than the floor 'strong'"),
        ({"default_policy": "weak", "policies": ["max"]}, r"which the key may not use \(it may use: max\)"),
    ],
)
def test_keys_that_do_not_fit_stop_the_start(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"key 'one': .*{message}"):
        Access(service(folder), Keys([key(**fields)]))


def test_keys_that_do_not_fit_any_more_are_not_taken_over(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    write_keys(path, KeyFile(keys=(key(floor="strong"),)))
    keys = Keys.load(path)
    Access(service(folder), keys)
    write_keys(path, KeyFile(keys=(key(floor="strong", policies=["weak"]),)))
    with caplog.at_level(logging.ERROR, "sldcore.service"):
        found = keys.find("one")
    assert found is not None and found.policies == ()
    assert "policy 'weak' is weaker than the floor 'strong'" in caplog.text


# --- inline: what is allowed -------------------------------------------------------------------------------------------


def test_only_keys_that_may_send_policies(access: Access) -> None:
    with pytest.raises(Forbidden, match="this key may not send policies of its own"):
        access.policy_for(key(operator=True), own())


def test_what_is_left_out_is_filled_in_from_the_operator_s(access: Access) -> None:
    policy = access.policy_for(INLINE, own())
    assert policy.digest == access.policies["standard"].digest
    assert policy.name == "inline"


def test_name_and_description_are_dropped(access: Access) -> None:
    policy = access.policy_for(INLINE, own(name="standard", description="<script>"))
    assert (policy.name, policy.description) == ("inline", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": {"options": {"scale": 3000, "threshold": 0.5}, "window": {"start": 0}}},
        {"guidance": {"options": {"scale": 1000}, "window": {"unit": "noise", "start": 1.0}}},
        {"concepts": [*STANDARD["concepts"], {"use": "violence/gore", "weight": 3}, "weapons/*"]},
        {"filters": [{"use": "playground-glyphs", "threshold": 0.1, "on_flag": "drop"}]},
        {"filters": [{"use": "playground-glyphs", "threshold": 0.5, "on_flag": {"do": "replace"}}]},
        {"filters": [{"use": "playground-glyphs", "threshold": 0.5, "on_flag": {"do": "regenerate", "attempts": 2}}]},
        {"filters": [{"use": "playground-glyphs", "threshold": 0.5, "timeout": 30}]},
        {"filters": [{"use": "playground-glyphs", "threshold": 0.5, "options": {"threshold": 0.6}}]},
        {"filters": [{"use": "playground-glyphs", "threshold": 0.5, "thresholds": {"sexual": 0.1}}]},
        {
            "filters": [
                {
                    "use": "playground-glyphs",
                    "threshold": 0.5,
                    "on_flag": {"do": "regenerate", "attempts": 1},
                    "concepts": {"sexual": "violence/gore"},
                }
            ],
            "concepts": STANDARD["concepts"],
        },
    ],
)  # fmt: skip
def test_a_request_may_be_stricter(access: Access, changes: dict[str, Any]) -> None:
    policy = access.policy_for(INLINE, own(**changes))
    assert weaker_where(policy, access.policies["standard"]) == ()


# --- inline: what is not ------------------------------------------------------------------------------------------------

PATHS = (
    "/etc/passwd",
    "../../secret.yaml",
    "file:///etc/passwd",
    "http://169.254.169.254/",
    "~/x",
    "a\0b",
    "..",
)

PLACES: dict[str, Any] = {
    "plugins": lambda path: {"plugins": [path]},
    "requires": lambda path: {"requires": [path]},
    "filter": lambda path: {"filters": [path]},
    "filter use": lambda path: {"filters": [{"use": path}]},
    "filter option": lambda path: {"filters": [{"use": "playground-glyphs", "options": {"threshold": path}}]},
    "filter model": lambda path: {"filters": [{"use": "q16", "options": {"model": path, "prompts": path}}]},
    "filter concept": lambda path: {"filters": [{"use": "playground-glyphs", "concepts": {"a": path}}]},
    "category": lambda path: {"filters": [{"use": "playground-glyphs", "concepts": {path: path}}]},
    "picture": lambda path: {
        "filters": [{"use": "playground-glyphs", "on_flag": {"do": "replace", "picture": path}}]
    },
    "action": lambda path: {"filters": [{"use": "playground-glyphs", "on_flag": path}]},
    "terms file": lambda path: {"prompt_filters": [{"use": "prompt-terms", "options": {"file": path}}]},
    "prompt filter": lambda path: {"prompt_filters": [path]},
    "mark": lambda path: {"marks": [path]},
    "mark font": lambda path: {"marks": [{"use": "visible-label", "options": {"font": path}}]},
    "hook": lambda path: {"step_hooks": [path]},
    "scheduler": lambda path: {"scheduler": path},
    "scheduler option": lambda path: {"scheduler": {"use": "ddim", "options": {"config": path}}},
    "method": lambda path: {"guidance": {"method": path}, "concepts": ["inappropriate"]},
    "references": lambda path: {
        "guidance": {"method": "safe-denoiser", "options": {"references": path, "sha256": "0" * 64}},
        "concepts": ["inappropriate"],
    },
    "option": lambda path: {"guidance": {"options": {"scale": path}}, "concepts": ["inappropriate"]},
    "window": lambda path: {"guidance": {"window": {"unit": path}}, "concepts": ["inappropriate"]},
    "concept": lambda path: {"guidance": {}, "concepts": [path]},
    "concept use": lambda path: {"guidance": {}, "concepts": [{"use": [path]}]},
    "concept text": lambda path: {"guidance": {}, "concepts": [{"text": path}]},
    "concept prefix": lambda path: {"guidance": {}, "concepts": [{"text": "a corporate logo", "prefix": path}]},
    "concept window": lambda path: {
        "guidance": {}, "concepts": [{"use": "inappropriate", "window": {"unit": path}}],
    },
    "gate concept": lambda path: {
        "guidance": {"gate": {"concepts": [path]}}, "concepts": ["inappropriate"],
    },
    "unknown": lambda path: {path: path},
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", PLACES)
def test_no_text_of_a_request_is_a_path(
    access: Access, place: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(self: Path, *_: Any, **__: Any) -> None:
        raise AssertionError(f"{self} was opened")

    access.policy_for(FREE, {})  # so that what is read once is read
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Path, "read_bytes", opened)
    with pytest.raises((Forbidden, PolicyError)) as raised:
        access.policy_for(FREE, PLACES[place](path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"plugins": ["mine.py"]}, "'plugins' is for policies of the operator only"),
        ({"requires": ["sldcore"]}, "'requires' is for policies of the operator only"),
        ({"filters": ["clip-concepts"]}, "'clip-concepts' is in none of the operator's policies"),
        ({"filters": ["playground-glyph"]}, "did you mean 'playground-glyphs'?"),
        ({"filters": [{"use": "playground-glyphs", "options": {"threshold": 0.9}}]}, "filters.0.options"),
        ({"filters": [{"use": "playground-glyphs", "timeout": 0.001}]}, "filters.0.timeout"),
        ({"filters": [{"use": "playground-glyphs", "timeout": 3600}]}, "filters.0.timeout"),
        ({"filters": ["playground-glyphs"] * 2}, "is named 2 times, and a request may name it 1 times"),
        ({"filters": [{"use": "playground-glyphs", "on_error": "raise"}]}, "filters.0.on_error"),
        ({"filters": [{"use": "playground-glyphs", "on_flag": "raise"}]}, "filters.0.on_flag"),
        (
            {"filters": [{"use": "playground-glyphs", "on_flag": {"do": "regenerate", "attempts": 20}}]},
            "attempts is 20, and a request may ask for 2",
        ),
        (
            {"filters": [{"use": "playground-glyphs", "on_flag": {"do": "regenerate", "attempts": 1, "then": "raise"}}]},
            "on_flag.then",
        ),
        ({"filters": [{"use": "playground-glyphs", "concepts": {"a": "!inappropriate"}}]}, "takes no concept out"),
        ({"filters": [{"use": "playground-glyphs", "only": ["a\u2028b"]}]}, "cannot be a category"),
        ({"on_error": "raise"}, "on_error"),
        ({"prompt_filters": [{"use": "prompt-terms", "on_flag": "raise"}]}, "prompt_filters.0.on_flag"),
        ({"prompt_filters": [{"use": "prompt-terms", "options": {"terms": "x"}}]}, "prompt_filters.0.options"),
        ({"marks": [{"use": "visible-label", "options": {"text": "not made by machine"}}]}, "marks.0.options"),
        ({"scheduler": "euler"}, "'euler' is in none of the operator's policies (a request may name: ddim)"),
        ({"step_hooks": ["recorder"]}, "(a request may name: none)"),
        ({"guidance": {"method": "casg"}, "concepts": ["violence"]}, "(a request may name: sld)"),
        ({"guidance": {"gate": {"threshold": 0.9}}, "concepts": ["violence"]}, "guidance.gate"),
        ({"guidance": {"savings": {"concept_every": 50}}, "concepts": ["violence"]}, "guidance.savings"),
        ({"guidance": {"window": {"unit": "late"}}, "concepts": ["violence"]}, "guidance.window.unit"),
        ({"guidance": {}, "concepts": [{"text": "clothes, dressed, decent"}]}, "texts are for policies of the operator"),
        ({"guidance": {}, "concepts": ["nothing-such"]}, "concept pack 'nothing-such'"),
        (
            {"guidance": {}, "concepts": ["inappropriate/*", "violence/*", "weapons/*", "substances/*"]},
            "concepts, and a request may name 16",
        ),
        ({"name": "x" * 2001}, "a text of 2,001 characters"),
        ({"name": "\ud800"}, "has characters that no text has"),
        ({"name": "a\x1b[2J"}, "has characters that no text has"),
        ({"concepts": ["violence"] * 1001}, "more than 1000 values"),
        ({"guidence": {}}, "unknown key 'guidence'; did you mean 'guidance'?"),
        ({5: 5}, "unknown key '5'"),
    ],
)  # fmt: skip
def test_what_only_the_operator_may_bring_is_refused(
    access: Access, content: dict[Any, Any], message: str
) -> None:
    with pytest.raises((Forbidden, PolicyError)) as raised:
        access.policy_for(FREE, content)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


def test_a_policy_that_is_too_deep_is_refused(access: Access) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(PolicyError, match="nested more than 12 levels deep"):
        access.policy_for(FREE, deep)


def test_refusals_do_not_say_what_the_operator_s_options_are(access: Access) -> None:
    content = {"prompt_filters": [{"use": "prompt-terms", "options": {"terms": "x"}}]}
    with pytest.raises(Forbidden) as raised:
        access.policy_for(FREE, content)
    assert "gore" not in str(raised.value)


def test_fields_that_policies_may_gain_are_not_free() -> None:
    """Whoever adds a field decides here whether a request may say it."""
    reader = InlinePolicies([])
    assert set(SafetyPolicy.model_fields) - set(reader._checks) == {
        "name",
        "description",
        "requires",
        "plugins",
    }
    assert set(FilterUse.model_fields) - FREE_IN_FILTERS == {"use", "options", "timeout"}
    assert set(GuidanceSpec.model_fields) == {"method", "options", "window", "gate", "savings"}


def test_gates_are_a_preset_s_or_the_operator_s(access: Access) -> None:
    guidance = SafetyPolicy.preset("gated").guidance
    assert guidance is not None
    content = {"guidance": guidance.model_dump(), "concepts": ["inappropriate"]}
    found = access.policy_for(FREE, content).guidance
    assert found is not None and isinstance(found.gate, Gate)


# --- the floor ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"guidance": None, "concepts": []}, "it does not guide"),
        ({"guidance": {"options": {"scale": 999}, "window": {"start": 5}}}, "scale is 999"),
        ({"guidance": {"options": {"scale": 1000}, "window": {"start": 49}}}, "window is not open"),
        ({"guidance": {"options": {"scale": 1000}, "window": {"start": 0, "stop": 1}}}, "window is not open"),
        ({"concepts": ["inappropriate"]}, "is missing"),
        ({"concepts": [{"use": "inappropriate", "weight": 0}, STANDARD["concepts"][1]]}, "has weight 0"),
        ({"concepts": [{"use": "inappropriate", "strength": 0.1}, STANDARD["concepts"][1]]}, "has strength"),
        ({"concepts": [{"use": "inappropriate", "window": {"start": 9}}, STANDARD["concepts"][1]]}, "window of"),
        ({"concepts": ["inappropriate/*", STANDARD["concepts"][1]]}, "concept 'inappropriate' is missing"),
        ({"filters": []}, "filter 'playground-glyphs' with the floor's options is missing"),
        ({"filters": [{"use": "playground-glyphs", "threshold": 1}]}, "its threshold is 1, above 0.5"),
        ({"filters": [{"use": "playground-glyphs", "threshold": 0.5, "thresholds": {"sexual": 1}}]}, "above 0.5"),
        ({"filters": [{"use": "playground-glyphs", "threshold": 0.5, "only": ["sexual"]}]}, "every category"),
        ({"filters": [{"use": "playground-glyphs", "threshold": 0.5, "ignore": ["sexual"]}]}, "every category"),
        ({"filters": [{"use": "playground-glyphs", "threshold": 0.5, "shadow": True}]}, "in shadow"),
        ({"filters": [{"use": "playground-glyphs", "threshold": 0.5, "on_error": "allow"}]}, "could not review"),
        ({"filters": [{"use": "playground-glyphs", "threshold": 0.5, "on_flag": "flag"}]}, "milder"),
        ({"filters": [{"use": "playground-glyphs", "threshold": 0.5, "on_flag": "blur"}]}, "milder"),
        (
            {
                "filters": [
                    {"use": "playground-glyphs", "threshold": 0.5, "on_flag": {"do": "regenerate", "attempts": 1, "then": "flag"}}
                ]
            },
            "milder",
        ),
        (
            {
                "guidance": {"options": {"scale": 1000, "threshold": 5}, "window": {"start": 5}},
                "filters": [],
            },
            "is missing",
        ),
        ({"prompt_filters": []}, "prompt filter 'prompt-terms'"),
        ({"prompt_filters": [{"use": "prompt-terms", "on_flag": "flag"}]}, "milder"),
        ({"marks": []}, "mark 'visible-label'"),
        ({"scheduler": None}, "its scheduler is not the floor's"),
    ],
)  # fmt: skip
def test_no_field_leads_below_the_floor(access: Access, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Forbidden) as raised:
        access.policy_for(INLINE, own(**changes))
    assert "weaker than 'standard', which is the least here" in str(raised.value)
    assert reason in str(raised.value)


def test_an_empty_policy_is_below_the_default(access: Access) -> None:
    with pytest.raises(Forbidden, match="it does not guide"):
        access.policy_for(INLINE, {})


def test_both_floors_hold(folder: Path) -> None:
    settings = service(folder, policies={"strong": "strong", "max": "max"}, floor="strong")
    access = Access(settings)
    above = key(inline=True, floor="max")
    guidance = {"options": {"scale": 3000, "threshold": 0.5, "momentum_scale": 0.5, "momentum_beta": 0.7}}
    content = {"guidance": guidance, "concepts": ["inappropriate"]}
    assert access.policy_for(key(inline=True), content).name == "inline"
    with pytest.raises(Forbidden, match="weaker than 'max'"):
        access.policy_for(above, content)
    with pytest.raises(Forbidden, match="weaker than 'strong'"):
        access.policy_for(key(inline=True), {**content, "guidance": {"options": {"scale": 100}}})


def test_comparisons_are_kept_and_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sldcore.service.rights import access as module

    access = Access(service(folder))
    compared: list[str] = []

    def counting(policy: SafetyPolicy, floor: SafetyPolicy) -> tuple[str, ...]:
        compared.append(policy.digest)
        return weaker_where(policy, floor)

    monkeypatch.setattr(module, "weaker_where", counting)
    monkeypatch.setattr(module, "KEPT_COMPARISONS", 3)
    for _ in range(3):
        access.policy_for(INLINE, own())
    assert len(compared) <= 1
    for scale in range(2000, 2010):
        access.policy_for(INLINE, own(guidance={"options": {"scale": scale}, "window": {"start": 5}}))
    assert len(access._compared) == 3


# --- whatever is sent ------------------------------------------------------------------------------------------------------

words = st.sampled_from(
    [
        *SafetyPolicy.model_fields, *FilterUse.model_fields, *GuidanceSpec.model_fields, *Gate.model_fields,
        "sld", "playground-glyphs", "prompt-terms", "visible-label", "inappropriate", "violence/*", "!inappropriate",
        "regenerate", "replace", "picture", "text", "/etc/passwd", "steps", "ddim", "scale",
    ]
)  # fmt: skip
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 3000)
    | st.floats(allow_nan=True)
    | words
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*SafetyPolicy.model_fields]), values, max_size=4))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_is_a_policy_above_the_floor_or_refused(
    access: Access, changes: dict[str, Any]
) -> None:
    try:
        policy = access.policy_for(INLINE, own(**changes))
    except (Forbidden, PolicyError, ConfigurationError):
        return
    assert weaker_where(policy, access.policies["standard"]) == ()
    assert policy.plugins == () and policy.requires == ()
    assert {use.options for use in policy.filters} <= {
        use.options for each in access.policies.values() for use in each.filters
    }
