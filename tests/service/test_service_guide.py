"""What docs/service.md says is true."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from service_app import TOKENS, made_app, served
from typer.testing import CliRunner

from sldcore.cli import app
from sldcore.service.http.schemas import ImageRequest, Safety
from sldcore.service.settings_sources import read_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/service.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [
        re.sub(r"^ {3}", "", block, flags=re.MULTILINE)
        for block in re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)
    ]


def test_the_configuration_is_one(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "service.yaml").write_text(text)
    (tmp_path / "keys.yaml").write_text("keys: []\n")
    (tmp_path / "keys.yaml").chmod(0o600)
    (tmp_path / "audit.secret").write_text("secret")
    settings = read_settings(tmp_path / "service.yaml", {})
    assert (settings.floor, settings.default_policy, settings.models["main"].steps) == (
        "standard",
        "standard",
        30,
    )
    assert settings.audit.path == tmp_path / "audit.sqlite"


@pytest.mark.parametrize(
    "line", [each for each in "\n".join(blocks("bash")).splitlines() if each.startswith("sld ")]
)
def test_commands_have_the_options_that_are_shown(line: str) -> None:
    words = shlex.split(line)[1:]
    shown = CliRunner().invoke(app, [*words[: 2 if words[0] == "keys" else 1], "--help"])
    assert shown.exit_code == 0
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", shown.stdout))


def test_the_client_example_runs() -> None:
    (code,) = blocks("python")
    with served(made_app().app) as address, contextlib.redirect_stdout(io.StringIO()) as printed:
        changed = code.replace("http://127.0.0.1:8000", address).replace('"any"', repr(TOKENS["user"]))
        exec(changed.replace('"max"', '"medium"'), {})
    assert "'policy': 'medium'" in printed.getvalue()


def test_fields_are_those_of_requests_and_answers() -> None:
    (entry,) = blocks("json")
    assert set(json.loads(entry)["safety"]) <= set(Safety.model_fields)
    table = TEXT[TEXT.index("| field | |") :].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", re.sub(r"\| [^|]*\|$", "|", table, flags=re.M))) <= set(
        ImageRequest.model_fields
    )
