"""``sld generate`` says why guidance acted, and draws what there is to draw of methods without concept rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from sldcore.cli import app
from sldcore.cli.generation_account import gate_reason
from sldcore.policy import Preset
from sldcore.provenance import probe_documents
from sldcore.types import Probe

PROMPT = "a red knight on a meadow"
GATED = """
name: {name}
guidance:
  options: {{scale: 5000, threshold: 1.0}}
  gate: {{probes: {probes}, threshold: {threshold}, then: {then}, concepts: [violence/assault, violence/gore]}}
concepts: [inappropriate]
"""


def sld(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def gated(folder: Path, name: str, threshold: float, probes: str = "[0.5]", then: str = "restart") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(GATED.format(name=name, threshold=threshold, probes=probes, then=then), encoding="utf-8")
    return path


def pictures(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "result.json").read_text(encoding="utf-8"))["pictures"]
    return found


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str | Path], Result]:
    """The same prompt behind a gate that never opens, one that always does, and no gate."""
    folder = tmp_path_factory.mktemp("gates")
    policies = [gated(folder, "never", 1), gated(folder, "always", -1), "max"]
    named = [part for policy in policies for part in ("--policy", policy)]
    out = folder / "out"
    arguments = [PROMPT, PROMPT, PROMPT, *named, "--steps", "4", "--compare", "--out", out]
    return out, arguments, sld(*arguments)


def test_the_output_says_why_guidance_acted_on_each_picture(
    compared: tuple[Path, list[str | Path], Result],
) -> None:
    assert compared[2].exit_code == 0
    said = [line for line in compared[2].stdout.splitlines() if ": guidance " in line]
    assert len(said) == 2
    assert said[0].startswith("0000-0.png: guidance did not act: the highest at step 2 was 'violence/")
    assert said[0].endswith("(threshold 1)")
    assert said[1].startswith("0001-0.png: guidance acted because 'violence/")
    assert said[1].endswith("at step 2 (threshold -1); made again, guided from the first step")


def test_the_document_holds_what_every_probe_saw(compared: tuple[Path, list[str | Path], Result]) -> None:
    never, always, plain = pictures(compared[0])
    assert [len(each["probes"]) for each in (never, always, plain)] == [1, 1, 0]
    for entry, threshold, opens in ((never, 1, False), (always, -1, True)):
        (probe,) = entry["probes"]
        assert (probe["step"], probe["threshold"]) == (2, threshold)
        assert (probe["guides"], probe["restarts"]) == (opens, opens)
        assert set(probe["relevance"]) == {"violence/assault", "violence/gore"}
        assert all(-1 <= value <= 1 for value in probe["relevance"].values())
    assert (never["rows"], never["plain_rows"]) == (10, 8)
    assert (always["rows"], always["plain_rows"]) == (20, 8)  # three calls, two probes, and the guided run


def test_a_picture_on_which_the_gate_does_not_act_is_the_unguided_one(
    compared: tuple[Path, list[str | Path], Result],
) -> None:
    out = compared[0]
    assert (out / "0000-0.png").exists()
    assert np.array_equal(pixels(out / "0000-0.png"), pixels(out / "0000-0-unguided.png"))
    assert pixels(out / "0000-0-difference.png").max() == 0
    assert np.abs(pixels(out / "0001-0.png") - pixels(out / "0001-0-unguided.png")).max() > 8


def test_a_resumed_run_says_it_again(compared: tuple[Path, list[str | Path], Result]) -> None:
    again = sld(*compared[1], "--resume")
    assert again.exit_code == 0, again.output
    assert again.stdout == compared[2].stdout


def test_json_output_has_the_reasons_and_no_further_lines(
    compared: tuple[Path, list[str | Path], Result],
) -> None:
    printed = json.loads(sld(*compared[1], "--resume", "--json").stdout)
    assert "did not act" in printed["pictures"][0]["probes"][0]["reason"]


def test_a_gate_that_continues_tells_what_changed(tmp_path: Path) -> None:
    policy = gated(tmp_path, "continues", -1, "[0.25, 0.5]", "continue")
    result = sld(PROMPT, "--policy", policy, "--steps", "4", "--out", tmp_path / "out")
    assert result.exit_code == 0
    (entry,) = pictures(tmp_path / "out")
    assert [(probe["step"], probe["guides"], probe["restarts"]) for probe in entry["probes"]] == [
        (1, True, False),
        (2, True, False),
    ]
    (said,) = [line for line in result.stdout.splitlines() if ": guidance " in line]
    assert said.endswith("at step 1 (threshold -1)")


def test_a_probe_that_the_run_does_not_reach_is_bad_input(tmp_path: Path) -> None:
    policy = tmp_path / "late.yaml"
    policy.write_text("guidance: {gate: {unit: steps, probes: [30]}}\nconcepts: [inappropriate]\n", "utf-8")
    result = sld(PROMPT, "--policy", policy, "--steps", "20", "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the gate probes at 30 (steps), which a run of 20 denoiser calls" in result.stderr
    assert not (tmp_path / "out").exists()


def references(folder: Path) -> str:
    from sldcore import load_pipeline
    from sldcore.guidance.references import write_references

    path = folder / "references.safetensors"
    digest = write_references(load_pipeline("playground"), [Image.new("RGB", (64, 64), "crimson")], path)
    return f"{{references: {path}, sha256: {digest}, noise_floor: 0.5}}"


@pytest.mark.parametrize("method", ["negative", "safree", "safe-denoiser"])
def test_a_method_without_concept_rows_is_compared_like_others(method: str, tmp_path: Path) -> None:
    options = references(tmp_path) if method == "safe-denoiser" else "{}"
    policy = tmp_path / "mine.yaml"
    policy.write_text(
        f"guidance: {{method: {method}, options: {options}}}\nconcepts: [inappropriate]\n", "utf-8"
    )
    result = sld(PROMPT, "--policy", policy, "--steps", "4", "--compare", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (entry,) = pictures(tmp_path / "out")
    (traced,) = entry["trace"]
    assert traced["rows_evaluated"] == 0
    assert traced["steps_applied"] > 0
    assert traced["max_norm"] is None
    assert "1.00x  inappropriate (no rows)" in result.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"0000-0-compare.png", "0000-0-curves.png"} <= files


@pytest.mark.parametrize("method", ["sld+negative", "casg", "dng"])
def test_a_method_with_concept_rows_shows_its_strongest_concept(method: str, tmp_path: Path) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text(f"guidance: {{method: {method}}}\nconcepts: [violence/gore]\n", "utf-8")
    result = sld(PROMPT, "--policy", policy, "--steps", "4", "--compare", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "1.50x  violence/gore (" in result.stdout


def probe(step: int, guides: bool, restarts: bool = False, **relevance: float) -> Probe:
    return Probe(step, relevance, 0.3, guides, restarts)


def test_of_several_probes_those_count_that_changed_something() -> None:
    seen = [probe(1, False, a=0.1), probe(2, True, a=0.4), probe(3, True, a=0.5), probe(4, False, a=0.0)]
    assert gate_reason(probe_documents(seen)) == (
        "acted because 'a' reached 0.40 at step 2 (threshold 0.3); then did not act: the highest at step 4 was 'a' with 0.00 "
        "(threshold 0.3)"
    )


def test_where_no_probe_changed_anything_the_nearest_counts() -> None:
    seen = [probe(1, False, a=0.1, b=-0.2), probe(2, False, a=0.0, b=0.25), probe(3, False, a=0.0)]
    assert "step 2 was 'b' with 0.25" in gate_reason(probe_documents(seen))
    assert gate_reason([]) == ""


def test_a_relevance_that_is_no_number_is_null_and_does_not_count() -> None:
    documents = probe_documents([probe(1, False, a=math.nan), probe(2, False, a=0.1)])
    assert [each["relevance"] for each in documents] == [{"a": None}, {"a": 0.1}]
    assert "step 2" in gate_reason(documents)


def test_the_help_lists_every_preset() -> None:
    text = " ".join(sld("--help").stdout.replace("│", " ").split())
    assert f"Preset ({', '.join(Preset)}) or YAML file" in text
