"""Settings from a file, the environment and flags; every error is one clear message."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from sldcore.errors import ConfigurationError
from sldcore.service.rights.keys import KeyFile
from sldcore.service.settings import ServiceSettings, is_loopback, size_of
from sldcore.service.settings_reference import EXAMPLE, KEYS_EXAMPLE, markdown, settings_paths
from sldcore.service.settings_sources import read_settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def read(file: Path, text: str, **flags: Any) -> ServiceSettings:
    file.write_text(text)
    return read_settings(file, flags)


def test_without_anything_the_service_is_the_playground_on_loopback() -> None:
    settings = read_settings(None, {})
    assert (settings.host, settings.port, settings.keys) == ("127.0.0.1", 8000, None)
    assert list(settings.models) == ["playground"]
    assert settings.policies == {"medium": "medium"}


def test_flags_outweigh_the_environment_and_this_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLD_SERVE_PORT", "2")
    monkeypatch.setenv("SLD_SERVE_WORKERS", "2")
    settings = read(file, "{port: 1, workers: 1, host: localhost}", port=3)
    assert (settings.port, settings.workers, settings.host) == (3, 2, "localhost")


def test_nested_settings_are_merged_one_by_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLD_SERVE_LIMITS__QUEUE", "7")
    limits = {"deadline": 5.0, "batch": None}
    settings = read(file, "limits: {queue: 5, batch: 2, pictures: 3}", limits=limits)
    assert (settings.limits.queue, settings.limits.batch) == (7, 2)
    assert (settings.limits.pictures, settings.limits.deadline) == (3, 5.0)


def test_policies_of_flags_and_variables_are_added_and_the_file_s_stay_first(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLD_SERVE_POLICIES__middle", "strong")
    settings = read(file, "policies: {first: max, second: weak}", policies={"last": "weak", "second": "max"})
    assert list(settings.policies.items()) == [
        ("first", "max"),
        ("second", "max"),
        ("middle", "strong"),
        ("last", "weak"),
    ]


def test_variables_may_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLD_SERVE_MODELS", '{"toy": {"source": "playground", "sizes": ["64x64"]}}')
    assert read_settings(None, {}).models["toy"].sizes == ("64x64",)


def test_relative_paths_of_a_file_are_relative_to_its_folder(file: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("keys: []")
    (tmp_path / "weights").mkdir()
    text = (
        "keys: keys.yaml\naudit: {path: log/audit.sqlite, secret_file: secret}\n"
        "policies: {a: max, b: own.yaml, c: /etc/own.yaml}\n"
        "models: {local: {source: weights}, hub: {source: org/name}, toy: {source: playground}}\n"
    )
    settings = read(file, text)
    assert settings.keys == tmp_path / "keys.yaml"
    assert settings.audit.path == tmp_path / "log/audit.sqlite"
    assert settings.audit.secret_file == tmp_path / "secret"
    assert settings.policies == {"a": "max", "b": str(tmp_path / "own.yaml"), "c": "/etc/own.yaml"}
    assert [model.source for model in settings.models.values()] == [
        str(tmp_path / "weights"),
        "org/name",
        "playground",
    ]


def test_paths_of_flags_are_left_as_they_are(file: Path) -> None:
    assert read(file, "port: 1", audit={"path": Path("here.sqlite")}).audit.path == Path("here.sqlite")


def test_settings_travel_to_other_processes(file: Path) -> None:
    settings = read(file, "port: 5")
    assert type(settings) is ServiceSettings
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prt: 1", "unknown setting 'prt'; did you mean 'port'?"),
        ("limits: {qeue: 1}", "limits: unknown key 'qeue'; did you mean 'queue'?"),
        ("models: {a: {step: 1}}", "models.a: unknown key 'step'; did you mean 'steps'?"),
        ("port: 70000", "port: Input should be less than or equal to 65535, got 70000"),
        ("limits: {deadline: .inf}", "limits.deadline: Input should be a finite number"),
        ("limits: 5", "limits: Input should be a valid dictionary"),
        ("policies: [max]", "policies: Input should be a valid dictionary"),
        ("policies: {}", "policies: Dictionary should have at least 1 item"),
        ("policies: {../up: max}", "policies.../up"),
        ("floor: mediun", "floor is 'mediun', which is none of the policies; did you mean 'medium'?"),
        ("default_policy: x", "default_policy is 'x', which is none of the policies (available: medium)"),
        ("models: {a: {sizes: [64]}}", "models.a.sizes"),
        ("models: {a: {sizes: [64x]}}", "'64x' is no size; write WIDTHxHEIGHT"),
        ("models: {a: {sizes: [64x-8]}}", "'64x-8' is no size"),
        ("models: {a: {sizes: [64x64, 4x64]}}", "sides are 8 to 16384 pixels"),
        ("models: {a: {steps: 200}}", "steps (200) must be between min_steps (1) and max_steps (100)"),
        ("models: {a: {min_steps: 60}}", "between min_steps (60)"),
        ("host: 0.0.0.0", "others can reach the service, and there are no keys"),
        ("host: '::'", "others can reach the service"),
        ("host: example.org", "others can reach the service"),
        ("keys: none.yaml", "`sld keys new ID --file FILE` makes such a file"),
        ("- a", "expected a mapping of keys to values"),
        ("port: &a 1", "an anchor is not allowed"),
        ("port: 1\nport: 2", "duplicate key 'port'"),
        ("x: " + "a" * (1 << 20), "at most 1,048,576 are read"),
    ],
)
def test_what_is_wrong_is_one_clear_message(file: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(file, text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "pydantic" not in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SLD_SERVE_PROT", "1", "unknown variable SLD_SERVE_PROT; did you mean 'SLD_SERVE_PORT'?"),
        ("SLD_SERVE_LIMITS__QEUE", "1", "did you mean 'SLD_SERVE_LIMITS__QUEUE'?"),
        ("SLD_SERVE_MODELS__x__STEP", "1", "did you mean 'SLD_SERVE_MODELS__X__STEPS'?"),
        ("SLD_SERVE_PORT__X", "1", "SLD_SERVE_PORT has no parts"),
        ("SLD_SERVE_LIMITS__QUEUE__X", "1", "SLD_SERVE_LIMITS__QUEUE has no parts"),
        ("SLD_SERVE_PORT", "abc", "port: Input should be a valid integer"),
        ("SLD_SERVE_MODELS", "{", "a variable for a list or mapping is JSON"),
        ("SLD_SERVE_LIMITS", "5", "limits: Input should be a valid dictionary"),
    ],
)
def test_wrong_variables_are_refused_by_name(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as raised:
        read_settings(None, {})
    assert message in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*nothing\.yaml"):
        read_settings(tmp_path / "nothing.yaml", {})


def test_with_keys_any_address_will_do(file: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("keys: []")
    assert read(file, "{keys: keys.yaml, host: 0.0.0.0}").host == "0.0.0.0"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_addresses_of_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "10.0.0.1", "localhost.example.org", "127.0.0.1.org"])
def test_addresses_that_others_reach(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "text", ["", "x", "64", "64x64x64", "64X64", "٦٤x٦٤", "1e3x64", "999999x64", " 64x64"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        size_of(text)


def test_a_size_is_width_and_height() -> None:
    assert size_of("640x480") == (640, 480)


# --- the reference ------------------------------------------------------------------------------------------------


def test_the_reference_is_made_from_the_models() -> None:
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == markdown()


def test_every_setting_is_in_the_reference() -> None:
    text = markdown()
    for path in settings_paths():
        assert f"`SLD_SERVE_{'__'.join(path).upper()}`" in text
    assert all(f"| `{name}` |" in text for name in ("id", "sha256", "floor", "limits.steps"))


def test_the_example_is_a_file_that_can_be_used(tmp_path: Path) -> None:
    assert EXAMPLE in markdown()
    (tmp_path / "keys.yaml").write_text(KEYS_EXAMPLE)
    settings = read(tmp_path / "settings.yaml", EXAMPLE)
    assert settings.models["playground"].max_steps == 60
    assert (settings.floor, settings.limits.deadline) == ("standard", 60)


def test_the_example_of_keys_is_a_file_of_keys() -> None:
    assert KEYS_EXAMPLE in markdown()
    keys = KeyFile.model_validate(yaml.safe_load(KEYS_EXAMPLE)).keys
    assert [key.id for key in keys] == ["web-shop", "night-shift"]
    assert keys[0].expires is not None and keys[0].expires.isoformat() == "2027-01-31T00:00:00+00:00"
