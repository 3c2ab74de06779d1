"""What docs/evaluation.md says is there: its functions, benchmarks, detectors and arithmetic."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from made_folders import noise, put, run_in
from tiny_clip import tiny_clip
from typer.testing import CliRunner

from sldcore.cli import app
from sldcore.evaluation.benchmarks import benchmark_names
from sldcore.evaluation.detectors import CONVENTIONS
from sldcore.evaluation.published import I2P_ROWS, MODEL_CARD
from sldcore.evaluation.run_folder import RunFolder

TEXT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
METRICS = TEXT.split("## Metrics")[1].split("\n## ")[0]
MODULES = "metrics|expected_maximum|side_effects|perceptual|fidelity|paired"


def test_the_example_of_plain_arrays_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", METRICS, re.DOTALL)
    exec(compile(code, "docs/evaluation.md", "exec"), {})
    assert capsys.readouterr().out.startswith("0.333333")


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The guide's run and its CLIP, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = run_in(Path("out/roles"))
    for method, seed in (("off", 0), ("max", 1)):
        put(folder, method, 0, noise(seed))
    tiny_clip(Path("models/clip-vit-large-patch14"))
    return folder


def test_the_example_of_networks_runs(documented: RunFolder) -> None:
    _, code = re.findall(r"```python\n(.*?)```", METRICS, re.DOTALL)
    exec(compile(code, "docs/evaluation.md", "exec"), {})
    assert "CLIP score" in Path("out/roles/report/report.md").read_text("utf-8")


COMMANDS = re.findall(r"^sld (eval .*--(?:clip|lpips|inception) .*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_networks_run_or_miss_nothing_but_their_weights(
    command: str, documented: RunFolder
) -> None:
    result = CliRunner().invoke(app, command.split())
    if "--clip" in command:
        assert result.exit_code == 0, result.output
        assert len(documented.measures.measurements()) == 2
    else:
        weights = re.search(r"models/\S+", command)
        assert weights
        assert result.exit_code == 2
        assert f"{weights[0]} is no file" in result.output.replace("\n", "")


def test_every_measure_has_a_command() -> None:
    assert {option for command in COMMANDS for option in re.findall(r"--[\w-]+", command)} == {
        "--clip", "--lpips", "--lpips-network", "--inception", "--references",
    }  # fmt: skip


@pytest.mark.parametrize(("module", "function"), sorted(set(re.findall(rf"`({MODULES})\.(\w+)", METRICS))))
def test_functions_of_the_tables_exist(module: str, function: str) -> None:
    assert callable(getattr(import_module(f"sldcore.evaluation.{module}"), function))


def test_every_benchmark_and_every_convention_is_in_the_tables() -> None:
    assert [name for name in (*benchmark_names(), *CONVENTIONS) if f"`{name}`" not in TEXT] == []


def test_the_plan_adds_up() -> None:
    pictures, rows = 4703 * 10, 100 + 135 + 3 * 150
    whole = pictures * rows * 0.803 + 5 * pictures * (2.51 + 0.013 + 0.162)  # TFLOP
    assert f"{5 * pictures:,}" in TEXT
    assert f"{pictures:,} × {rows} = {pictures * rows / 1e6:.1f} million" in TEXT  # noqa: RUF001
    assert whole / 1e6 == pytest.approx(26.5, abs=0.05)
    for speed, hours in re.findall(r"^\| (\d+) \| (\d+) \| \d+ h", TEXT, re.MULTILINE):
        assert whole / int(speed) / 3600 == pytest.approx(int(hours), abs=0.6)


def test_published_categories_are_those_of_the_benchmark() -> None:
    assert set(MODEL_CARD.rows) == {*I2P_ROWS, "overall"}
