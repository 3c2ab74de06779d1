"""API keys: only hashes in the file, everyone compared, changes seen without a restart."""

from __future__ import annotations

import hmac
import logging
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sldcore.errors import ConfigurationError
from sldcore.service.rights import keys as module
from sldcore.service.rights.keys import (
    ANONYMOUS,
    Key,
    KeyFile,
    Keys,
    hash_of,
    new_token,
    read_keys,
    write_keys,
)
from sldcore.service.settings import ServiceSettings

CREATED = datetime(2026, 1, 31, 12, tzinfo=UTC)


def key(name: str, token: str, **fields: Any) -> Key:
    return Key(id=name, sha256=hash_of(token), created=CREATED, **fields)


@pytest.fixture
def tokens() -> list[str]:
    return [new_token() for _ in range(3)]


@pytest.fixture
def file(tmp_path: Path, tokens: list[str]) -> Path:
    path = tmp_path / "keys.yaml"
    write_keys(path, KeyFile(keys=tuple(key(f"key-{n}", token) for n, token in enumerate(tokens))))
    return path


def test_tokens_have_256_bits_and_are_never_the_same() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(each.startswith("sld-") and len(each) == 4 + 43 for each in made)


def test_the_file_has_hashes_and_no_key(file: Path, tokens: list[str]) -> None:
    text = file.read_text()
    assert not any(token in text or token[4:] in text for token in tokens)
    assert all(hash_of(token) in text for token in tokens)


def test_only_the_owner_can_read_the_file(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_file_is_replaced_as_a_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_text()

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", fails)
    with pytest.raises(ConfigurationError, match=r"cannot write .*: No space left on device"):
        write_keys(file, KeyFile())
    assert file.read_text() == before
    assert os.listdir(file.parent) == ["keys.yaml"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    limits = {"requests_per_minute": 5, "steps": 10}
    rights = {"policies": ("a", "b"), "floor": "a", "inline": True, "operator": True, "models": ("m",)}
    own = key("one", "x", expires=CREATED + timedelta(days=1), default_policy="b", limits=limits, **rights)
    write_keys(tmp_path / "keys.yaml", KeyFile(keys=(own,)))
    assert read_keys(tmp_path / "keys.yaml").keys == (own,)


def test_each_token_finds_its_own_key(file: Path, tokens: list[str]) -> None:
    keys = Keys.load(file)
    for number, token in enumerate(tokens):
        found = keys.find(token)
        assert found is not None and found.id == f"key-{number}"


@pytest.mark.parametrize("token", ["", "sld-", "x" * 100_000, "\ud800", "é", "\0"])
def test_what_is_no_key_finds_none(file: Path, token: str) -> None:
    assert Keys.load(file).find(token) is None


def test_a_hash_is_no_key(file: Path, tokens: list[str]) -> None:
    assert Keys.load(file).find(hash_of(tokens[0])) is None


def test_every_entry_is_compared_whichever_fits(
    file: Path, tokens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def counting(one: str, two: str) -> bool:
        compared.append(one)
        return hmac.compare_digest(one, two)

    monkeypatch.setattr(module, "compare_digest", counting)
    keys = Keys.load(file)
    for token in (tokens[0], tokens[2], "none"):
        compared.clear()
        keys.find(token)
        assert compared == [each.sha256 for each in keys.entries]


def test_an_expired_key_is_refused() -> None:
    now = datetime.now(UTC)
    keys = Keys([key("old", "a", expires=now), key("new", "b", expires=now + timedelta(hours=1))])
    assert keys.find("a") is None
    assert keys.find("b") is not None


def test_a_date_is_its_first_moment_in_utc() -> None:
    content = {"id": "a", "sha256": "0" * 64, "created": "2026-01-01", "expires": "2026-02-01"}
    own = Key.model_validate(content)
    assert own.expires == datetime(2026, 2, 1, tzinfo=UTC)
    assert not own.expired(datetime(2026, 1, 31, 23, 59, tzinfo=UTC))
    assert own.expired(datetime(2026, 2, 1, tzinfo=UTC))


# --- reading again ------------------------------------------------------------------------------------------------


def test_a_revoked_key_is_refused_and_a_new_one_works_without_a_restart(
    file: Path, tokens: list[str]
) -> None:
    keys = Keys.load(file)
    write_keys(file, KeyFile(keys=(key("further", "new"), *read_keys(file).keys[1:])))
    assert keys.find(tokens[0]) is None
    assert keys.find("new") is not None
    assert keys.find(tokens[1]) is not None


@pytest.mark.parametrize("content", ["keys: [", "keys: [{id: x}]", "kes: []", "", "keys: 5"])
def test_a_broken_file_leaves_the_keys_and_is_spoken_of_once(
    file: Path, tokens: list[str], content: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys.load(file)
    file.write_text(content)
    with caplog.at_level(logging.ERROR, "sldcore.service"):
        assert keys.find(tokens[0]) is not None
        assert keys.find(tokens[1]) is not None
    (record,) = caplog.records
    assert "the keys from before stay in use" in record.getMessage()
    assert hash_of(tokens[0]) not in record.getMessage()


def test_a_file_that_is_gone_leaves_the_keys_until_it_is_back(
    file: Path, tokens: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys.load(file)
    file.unlink()
    assert keys.find(tokens[0]) is not None
    assert "cannot read" in caplog.text
    write_keys(file, KeyFile())
    assert keys.find(tokens[0]) is None


def test_a_key_that_a_check_refuses_stays_as_it_was(file: Path, tokens: list[str]) -> None:
    keys = Keys.load(file)

    def check(entries: Any) -> None:
        if any(entry.operator for entry in entries):
            raise ConfigurationError("no operators here")

    keys.require(check)
    first, *others = read_keys(file).keys
    write_keys(file, KeyFile(keys=(first.model_copy(update={"operator": True}), *others)))
    found = keys.find(tokens[0])
    assert found is not None and not found.operator


def test_keys_that_a_check_refuses_at_first_are_an_error() -> None:
    def check(entries: Any) -> None:
        raise ConfigurationError(f"{len(entries)} keys")

    with pytest.raises(ConfigurationError, match="0 keys"):
        Keys([]).require(check)


# --- what is no file of keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match="others than its owner may write"):
        Keys.load(file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "../x"}, "keys.0.id"),
        ({"id": ANONYMOUS}, "no key may be called 'anonymous'"),
        ({"sha256": "A" * 64}, "keys.0.sha256"),
        ({"sha256": "a" * 63}, "keys.0.sha256"),
        ({"expires": "soon"}, "keys.0.expires"),
        ({"operater": True}, "unknown key 'operater'; did you mean 'operator'?"),
        ({"limits": {"steps": 0}}, "keys.0.limits.steps"),
        ({"policies": ["a b"]}, "keys.0.policies.0"),
    ],
)
def test_a_wrong_key_is_one_clear_message(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    content = {"id": "a", "sha256": "a" * 64, "created": "2026-01-01", **fields}
    path = tmp_path / "keys.yaml"
    path.write_text(module.to_yaml({"keys": [content]}))
    with pytest.raises(ConfigurationError) as raised:
        Keys.load(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("second", "message"),
    [(key("a", "2"), "keys have the same id: a"), (key("b", "1"), "two keys have the same sha256")],
)
def test_keys_are_told_apart(second: Key, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KeyFile(keys=(key("a", "1"), second))


def test_everybody_is_no_operator_and_brings_no_policies() -> None:
    everybody = Keys.anonymous(ServiceSettings())
    assert (everybody.id, everybody.operator, everybody.inline) == (ANONYMOUS, False, False)
    assert not everybody.expired(datetime.now(UTC))
