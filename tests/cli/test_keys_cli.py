"""``sld keys``."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sldcore.cli import app
from sldcore.service.rights.keys import Keys, hash_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def keys(command: str, *arguments: str, file: Path) -> Result:
    return CliRunner().invoke(app, ["keys", command, *arguments, "--file", str(file)])


def test_the_key_alone_is_on_stdout_and_only_its_hash_in_the_file(file: Path) -> None:
    result = keys("new", "shop", file=file)
    assert result.exit_code == 0
    token = result.stdout.removesuffix("\n")
    assert token.startswith("sld-") and "\n" not in token
    assert "key 'shop' is in" in result.stderr and token not in result.stderr
    assert token not in file.read_text() and hash_of(token) in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = Keys.load(file).find(token)
    assert found is not None and found.id == "shop"
    assert (found.inline, found.operator, found.policies, found.expires) == (False, False, (), None)


def test_everything_that_a_key_may_can_be_said(file: Path) -> None:
    rights = ["--policies", "a, b", "--floor", "a", "--default-policy", "b", "--models", "m"]
    limits = ["--requests-per-minute", "6", "--pictures-per-minute", "5", "--pictures", "4"]
    further = [
        "--prompt-characters",
        "3",
        "--steps",
        "2",
        "--inline",
        "--operator",
        "--expires",
        "2030-01-31",
    ]
    result = keys("new", "all", *rights, *limits, *further, file=file)
    assert result.exit_code == 0, result.output
    (key,) = Keys.load(file).entries
    assert (key.policies, key.floor, key.default_policy, key.models) == (("a", "b"), "a", "b", ("m",))
    assert list(key.limits.model_dump().values()) == [6, 5, 4, 3, 2]
    assert key.inline and key.operator
    assert key.expires is not None and key.expires.isoformat() == "2030-01-31T00:00:00+00:00"


def test_a_second_key_joins_the_first_and_can_be_taken_out(file: Path) -> None:
    tokens = [keys("new", name, file=file).stdout.strip() for name in ("one", "two")]
    assert keys("revoke", "one", file=file).stdout == f"key 'one' is no longer in {file}\n"
    loaded = Keys.load(file)
    assert loaded.find(tokens[0]) is None
    assert loaded.find(tokens[1]) is not None


def test_the_list_shows_rights_and_no_hash(file: Path) -> None:
    token = keys("new", "shop", "--inline", "--policies", "strict", "--steps", "9", file=file).stdout.strip()
    result = keys("list", file=file)
    assert result.exit_code == 0
    assert all(word in result.stdout for word in ("shop", "never", "strict", "inline", "steps 9"))
    assert hash_of(token)[:12] not in result.stdout


def test_the_list_as_json(file: Path) -> None:
    keys("new", "old", "--expires", "2020-01-01", file=file)
    (entry,) = json.loads(keys("list", "--json", file=file).stdout)
    assert (entry["id"], entry["expired"]) == ("old", True)
    assert "sha256" not in entry


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "one"], "there is a key 'one' already; `sld keys revoke` takes it out"),
        (["new", "../x"], "key '../x': id"),
        (["new", "two", "--expires", "soon"], "key 'two': expires"),
        (["new", "two", "--steps", "0"], "key 'two': limits.steps"),
        (["new", "anonymous"], "no key may be called 'anonymous'"),
        (["revoke", "onee"], "there is no key 'onee'; did you mean 'one'? (keys: one)"),
    ],
)
def test_what_is_wrong_is_one_message_and_leaves_the_file(
    file: Path, arguments: list[str], message: str
) -> None:
    keys("new", "one", file=file)
    before = file.read_text()
    result = keys(*arguments, file=file)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert file.read_text() == before


def test_a_file_that_is_not_there_cannot_be_listed(file: Path) -> None:
    result = keys("list", file=file)
    assert result.exit_code == 2
    assert "cannot read" in result.stderr
