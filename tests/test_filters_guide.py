"""What docs/filters.md says is true: its policies are valid, its code runs, its tables are complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from sldcore.catalogue import current
from sldcore.cli import app
from sldcore.concepts import resolve
from sldcore.contributions import Contribution, MarkKind, PostFilterKind, PromptFilterKind
from sldcore.documents import read_mapping
from sldcore.filters.actions import SEVERITY
from sldcore.policy import Action, FilterUse, SafetyPolicy

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "filters.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def section(title: str) -> str:
    return GUIDE.split(f"# {title}\n")[1].split("\n#")[0]


def first_cells(title: str) -> list[str]:
    """What the rows of a section's table begin with."""
    names = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`.*?) \|", section(title), re.M)]
    return [name for row in names for name in row]


def policies() -> list[SafetyPolicy]:
    return [SafetyPolicy.parse(text, source="docs/filters.md") for text in blocks("yaml")]


def known(kind: type[Contribution]) -> set[str]:
    """Names of the core and of the distributions in ``plugins/``."""
    manifests = [read_mapping(path) for path in (ROOT / "plugins").glob("*/src/*/sld-plugin.yaml")]
    plugged = {name for each in manifests for name in each["contributes"].get(kind.kind, ())}
    return plugged | {entry.contribution.name for entry in current().entries(kind)}


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: text.splitlines()[0])
def test_a_recipe_is_a_policy_whose_concepts_can_be_had(text: str) -> None:
    policy = SafetyPolicy.parse(text, source="docs/filters.md")
    assert policy.filters
    resolve(policy.concepts)


@pytest.mark.parametrize("kind", [PostFilterKind, PromptFilterKind, MarkKind])
def test_what_the_recipes_name_exists(kind: type[Contribution]) -> None:
    fields = {PostFilterKind: "filters", PromptFilterKind: "prompt_filters", MarkKind: "marks"}
    named = {use.use for policy in policies() for use in getattr(policy, fields[kind])}
    assert named
    assert named <= known(kind)


def test_concepts_that_regenerate_adds_can_be_had() -> None:
    named = [str(name) for policy in policies() for use in policy.filters for name in use.concepts.values()]
    assert named
    for name in named:
        assert resolve(SafetyPolicy.parse(f"guidance: {{method: sld}}\nconcepts: [{name}]").concepts)


def test_the_weak_and_max_recipes_are_those_presets() -> None:
    by_name = {policy.name: policy for policy in policies()}
    for name, preset in (("try-again", "weak"), ("playground", "weak"), ("strict", "max")):
        assert by_name[name].guidance == SafetyPolicy.preset(preset).guidance


def test_the_table_of_keys_is_complete() -> None:
    assert set(first_cells("One filter of a policy")) == set(FilterUse.model_fields)


def test_the_table_of_modes_is_complete() -> None:
    modes = get_args(SafetyPolicy.model_fields["filter_mode"].annotation)
    assert set(first_cells("Modes")) - {"filter_mode"} == set(modes)


def test_the_table_of_actions_is_complete_and_in_the_order_of_severity() -> None:
    actions = [name for name in first_cells("Actions") if name != "on_flag"]
    assert set(actions) == set(get_args(Action.model_fields["do"].annotation))
    assert tuple(name for name in actions if name != "regenerate") == SEVERITY


def test_the_table_of_further_attempts_has_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `?(\w+)`? \|", section("Further attempts"), re.M)
    fields: dict[str, Any] = {name: Action.model_fields[name].default for name, _ in rows}
    assert {name: str(value).lower() for name, value in fields.items()} == dict(rows)
    assert set(fields) == set(Action.model_fields) - {"do", "area", "picture"}


def test_the_table_of_error_rules_is_complete() -> None:
    rules = {
        rule for part in get_args(FilterUse.model_fields["on_error"].annotation) for rule in get_args(part)
    }
    assert set(first_cells("When a filter fails")) - {"on_error"} == rules


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_a_command_exists_with_the_options_that_are_shown(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = words[: 1 if words[0] == "generate" else 2]
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", result.stdout))


def test_the_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "docs/filters.md", "exec"), {})
    digest = SafetyPolicy.preset("max").digest[:8]
    assert capsys.readouterr().out == f"0 torn; none {digest}\n"


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", GUIDE) if "://" not in target]
    titles = {re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^#+ (.+)$", GUIDE, re.M)}
    files = [target for target in targets if not target.startswith("#")]
    assert {target[1:] for target in targets if target.startswith("#")} <= titles
    assert all((ROOT / "docs" / file).exists() for file in files)
