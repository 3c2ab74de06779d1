"""docs/methods.md says what the code does: methods, presets, examples, and that every picture of it is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sldcore import SafetyPolicy
from sldcore.guidance.kinds import KINDS
from sldcore.policy import Window
from sldcore.presets import PRESETS
from sldcore.resolution import check_policies

GUIDE = Path(__file__).parents[1] / "docs" / "methods.md"
TEXT = GUIDE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
SEGA = "sega"


def rows_of(heading: str) -> list[list[str]]:
    """Cells of the first table after a heading or a mark, without its head."""
    lines = TEXT.split(f"{heading}\n", 1)[1].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return table[2:]


def in_words(window: Window) -> str:
    until = f" to {window.stop:g}" if window.stop is not None else ""
    return f"{window.unit} from {window.start:g}{until}"


def example(method: str) -> SafetyPolicy:
    found = [SafetyPolicy.parse(text) for text in EXAMPLES if f"method: {method}" in text]
    return next(each for each in found if each.guidance is not None and each.guidance.method == method)


def test_every_method_of_the_core_and_sega_are_described() -> None:
    assert {row[0] for row in rows_of("# Guidance methods")} == {*(kind.name for kind in KINDS), SEGA}


@pytest.mark.parametrize("method", [kind.name for kind in KINDS])
def test_the_example_of_each_method_can_be_used(method: str) -> None:
    policy = example(method)
    check_policies([policy])
    assert policy.guides


def test_the_example_of_sega_names_the_distribution_that_has_it() -> None:
    assert [each.split(">")[0] for each in example(SEGA).requires] == ["sld-guidance-sega"]


def test_the_table_of_presets_is_what_the_presets_are() -> None:
    documented = {row[0]: row[1:] for row in rows_of("## Presets")}
    real = {}
    for preset, policy in PRESETS.items():
        if policy.guidance is not None:
            options = [
                policy.guidance.options[name]
                for name in ("scale", "threshold", "momentum_scale", "momentum_beta")
            ]
            real[preset.value] = [in_words(policy.guidance.window), *(f"{value:g}" for value in options)]
    assert documented == real


def test_the_written_out_gate_is_the_preset_gated() -> None:
    written = next(SafetyPolicy.parse(text) for text in EXAMPLES if "gate:" in text)
    assert written.digest == SafetyPolicy.preset("gated").digest


@pytest.mark.parametrize("table", ["roles", "neutral", "explicit"])
def test_every_preset_of_the_comparison_has_a_line_in_each_table(table: str) -> None:
    shown = {row[0] for row in rows_of(f"<!-- table {table} -->")}
    assert shown >= {"off", "weak", "medium", "strong", "max", "gated"}


def test_every_method_has_a_line_on_role_prompts() -> None:
    shown = {row[0] for row in rows_of("<!-- table roles -->")}
    assert shown >= {kind.name for kind in KINDS} - {"sld"}


def test_the_pictures_are_there() -> None:
    named = re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT)
    assert named
    assert [name for name in named if not (GUIDE.parent / name).is_file()] == []
