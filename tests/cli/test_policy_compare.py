"""``sld policy compare``."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sldcore.cli import app


def test_a_stricter_policy_passes() -> None:
    result = CliRunner().invoke(app, ["policy", "compare", "max", "medium"])
    assert (result.exit_code, result.stdout) == (0, "'max' is at least as strict as 'medium'\n")


def test_a_weaker_one_fails_and_says_in_what() -> None:
    result = CliRunner().invoke(app, ["policy", "compare", "weak", "medium"])
    assert result.exit_code == 1
    assert "'weak' is weaker than 'medium'\n- scale is 200, below 1000\n" in result.stdout
    assert "- its guidance window is not open wherever the floor's is\n" in result.stdout


@pytest.mark.parametrize(("policy", "code"), [("gated", 1), ("max", 0)])
def test_as_json(policy: str, code: int) -> None:
    result = CliRunner().invoke(app, ["policy", "compare", policy, "max", "--json"])
    assert result.exit_code == code
    answer = json.loads(result.stdout)
    assert answer["at_least_as_strict"] == (code == 0)
    assert bool(answer["weaker"]) == (code == 1)


def test_what_is_no_policy_is_an_error() -> None:
    result = CliRunner().invoke(app, ["policy", "compare", "max", "maxx"])
    assert result.exit_code == 2
    assert "did you mean 'max'" in result.output
