"""What the README and the constraints say is true."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sldcore
from sldcore.cli import app
from sldcore.concepts import resolve
from sldcore.policy import SafetyPolicy

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


GROUPS = ("policy", "concepts", "playground", "plugins", "filters", "audit", "keys", "eval")
"""Commands that have commands of their own."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    return [
        shlex.split(line, comments=True)
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("sld ")
    ]


def test_the_policy_is_valid_and_its_concepts_can_be_had() -> None:
    (text,) = blocks("yaml")
    policy = SafetyPolicy.parse(text, source="README.md")
    assert len(resolve(policy.concepts)) == 8


def test_the_preset_table_is_that_of_the_presets() -> None:
    rows = re.findall(
        r"^\| ([a-z-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.M
    )
    assert len(rows) == 5
    for name, warmup, scale, threshold, momentum, beta in rows:
        guidance = SafetyPolicy.preset(name).guidance
        assert guidance is not None
        options = {
            "scale": float(scale),
            "threshold": float(threshold),
            "momentum_scale": float(momentum),
            "momentum_beta": float(beta),
        }
        assert (guidance.window.start, dict(guidance.options)) == (float(warmup), options)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_names_that_the_examples_import_are_public(code: str) -> None:
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports if node.module == "sldcore" for alias in node.names}
    assert names
    assert names <= set(sldcore.__all__)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_exists_with_the_options_that_are_shown(command: list[str]) -> None:
    words = [word for word in command[1:3] if not word.startswith("-")]
    path = words[: 2 if words[0] in GROUPS else 1]
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    options = {word for word in command if word.startswith("--")}
    assert options <= set(re.findall(r"--[a-z-]+", result.stdout))


def test_the_shown_commands_that_only_look_run() -> None:
    looking = [command[1:] for command in commands() if command[1] in ("policy", "concepts")]
    assert looking
    assert all(CliRunner().invoke(app, command).exit_code == 0 for command in looking)


def test_links_into_the_repository_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert all((ROOT / target).exists() for target in targets)


def test_constraints_pin_every_direct_dependency_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
    ]  # what development and CI install
    pinned = re.findall(r"^([\w-]+)==[\w.]+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    names = {re.match(r"[\w-]+", part)[0].lower() for part in wanted}  # type: ignore[index]
    assert names <= {name.lower() for name in pinned}
