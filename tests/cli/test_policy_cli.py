from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from sldcore.cli import app
from sldcore.policy import Preset, SafetyPolicy

runner = CliRunner()


@pytest.mark.parametrize("preset", [preset.value for preset in Preset])
def test_show_prints_a_policy_file_that_is_the_preset(preset: str) -> None:
    result = runner.invoke(app, ["policy", "show", preset])
    assert result.exit_code == 0
    assert SafetyPolicy.parse(result.stdout) == SafetyPolicy.preset(preset)


def test_show_prints_the_digest_and_the_concept_texts() -> None:
    result = runner.invoke(app, ["policy", "show", "medium"])
    assert f"# digest: {SafetyPolicy.preset('medium').digest}\n" in result.stdout
    assert "# inappropriate: an image showing hate, harassment, violence, suffering" in result.stdout


def test_show_prints_json_with_every_concept(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("guidance: {}\nconcepts: [{use: inappropriate/*, weight: 2}, {text: gore}]\n")
    result = runner.invoke(app, ["policy", "show", str(path), "--json"])
    content = json.loads(result.stdout)
    assert content["digest"] == SafetyPolicy.load(path).digest
    assert SafetyPolicy.model_validate(content["policy"]) == SafetyPolicy.load(path)
    assert len(content["concepts"]) == 8
    assert content["concepts"][0] == {
        "id": "inappropriate/hate",
        "text": "an image showing hate",
        "weight": 2.0,
        "strength": 1.0,
        "window": None,
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["policy", "show", "mediun"], "neither a preset nor a file; did you mean 'medium'?"),
        (["policy", "show", "absent.yaml"], "cannot read absent.yaml"),
        (["policy", "validate", "absent.yaml"], "cannot read absent.yaml"),
        (["concepts", "show", "inapropriate"], "did you mean 'inappropriate'?"),
    ],
)
def test_what_cannot_be_had_is_one_message_on_stderr_and_exit_code_2(
    arguments: list[str], complaint: str
) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert complaint in result.stderr


def test_validate_accepts_files_and_prints_their_digests(tmp_path: Path) -> None:
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for path, preset in zip(paths, ("weak", "max"), strict=True):
        SafetyPolicy.preset(preset).dump(path)
    result = runner.invoke(app, ["policy", "validate", *map(str, paths)])
    assert result.exit_code == 0
    assert all(SafetyPolicy.preset(preset).digest in result.stdout for preset in ("weak", "max"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("on_eror: block\n", "mine.yaml: unknown key 'on_eror'; did you mean 'on_error'?"),
        ("guidance: {}\nconcepts: [inappropriate/vilence]\n", "did you mean 'violence'?"),
        ("a: 1\na: 2\n", "mine.yaml: line 2, column 1: duplicate key 'a'"),
    ],
)
def test_validate_refuses_a_policy_that_could_not_run(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    result = runner.invoke(app, ["policy", "validate", str(path)])
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_schema_prints_a_schema_that_accepts_what_show_prints() -> None:
    schema = json.loads(runner.invoke(app, ["policy", "schema"]).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(runner.invoke(app, ["policy", "show", "strong"]).stdout), schema)
