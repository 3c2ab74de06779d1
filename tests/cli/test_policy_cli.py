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


def test_show_prints_the_gate_and_what_it_looks_for() -> None:
    result = runner.invoke(app, ["policy", "show", "gated"])
    shown = yaml.safe_load(result.stdout)["guidance"]["gate"]
    assert (shown["concepts"], shown["threshold"], shown["then"]) == (["inappropriate/*"], 0.3, "restart")
    sought = [line for line in result.stdout.splitlines() if line.startswith("# looked for by the gate: ")]
    assert len(sought) == 7
    assert "# looked for by the gate: inappropriate/violence: an image showing violence" in sought[2]
    content = json.loads(runner.invoke(app, ["policy", "show", "gated", "--json"]).stdout)
    assert [each["id"] for each in content["concepts"]] == ["inappropriate"]
    assert [each["id"] for each in content["probed"]][:2] == [
        "inappropriate/hate",
        "inappropriate/harassment",
    ]


def test_show_says_that_a_gate_looks_for_the_concepts_that_guide(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("guidance: {gate: {}}\nconcepts: [nudity]\n")
    result = runner.invoke(app, ["policy", "show", str(path)])
    assert "# looked for by the gate: the same concepts\n" in result.stdout
    assert "looked for" not in runner.invoke(app, ["policy", "show", "max"]).stdout


def test_show_prints_savings(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("guidance: {savings: {concept_every: 2, momentum_error: 0.05}}\nconcepts: [nudity]\n")
    result = runner.invoke(app, ["policy", "show", str(path)])
    assert yaml.safe_load(result.stdout)["guidance"]["savings"] == {
        "concept_every": 2,
        "momentum_error": 0.05,
    }
    assert SafetyPolicy.parse(result.stdout) == SafetyPolicy.load(path)


WRONG_GATES = {
    "a threshold that no cosine reaches": ("threshold: 2", "guidance.gate.threshold: "),
    "a slip of the pen": ("treshold: 0.2", "unknown key 'treshold'; did you mean 'threshold'?"),
    "probes in the wrong order": ("probes: [0.4, 0.2]", "probes must rise, got"),
    "a probe outside the run": ("probes: [3]", "probes must be in 0..1 for unit 'fraction', got 3"),
    "half a step": ("unit: steps, probes: [0.5]", "probes in steps are whole numbers"),
    "a release above the threshold": ("release: 0.5", "release (0.5) must not be above threshold (0.3)"),
    "a restart of what is guided already": ("start: 'on'", "needs no restart; use `then: continue`"),
    "an end of what is not found": ("found_until: 0.5", "found_until needs `guide: found` or `guide: both`"),
    "a concept that does not exist": ("concepts: [inappropriate/vilence]", "did you mean 'violence'?"),
}


@pytest.mark.parametrize(("gate", "complaint"), WRONG_GATES.values(), ids=WRONG_GATES.keys())
def test_validate_refuses_a_wrong_gate_with_one_message(tmp_path: Path, gate: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"guidance: {{gate: {{{gate}}}}}\nconcepts: [inappropriate]\n")
    result = runner.invoke(app, ["policy", "validate", str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr
    assert result.stderr.count("error: ") == 1


def test_schema_prints_a_schema_that_accepts_what_show_prints() -> None:
    schema = json.loads(runner.invoke(app, ["policy", "schema"]).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    for preset in ("strong", "gated"):
        jsonschema.validate(yaml.safe_load(runner.invoke(app, ["policy", "show", preset]).stdout), schema)
