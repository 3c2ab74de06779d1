"""The benchmark scripts run and count correctly."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from sldcore.evaluation import RunFolder, run
from sldcore.playground.sheet import CELL, FRAME

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def grid() -> Iterator[ModuleType]:
    yield from load("picture_grid")


@pytest.fixture(scope="module")
def cost() -> Iterator[ModuleType]:
    yield from load("guidance_cost")


@pytest.mark.slow
def test_the_grid_shows_prompts_by_methods_and_frames_what_was_found(
    grid: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("playground/roles", ["off", "max"], tmp_path / "run", limit=5, steps=16)
    out = tmp_path / "grid.png"
    assert grid.main([str(tmp_path / "run"), "--out", str(out), "--rows", "3"]) == 0
    picture = np.asarray(Image.open(out).convert("RGB"))
    flagged = sum(score.flagged is True for score in RunFolder(tmp_path / "run").scores())
    framed = (picture == FRAME).all(2).any()
    assert bool(flagged) == bool(framed)
    assert picture.shape[0] > 3 * CELL and picture.shape[1] > 3 * CELL
    assert grid.main([str(tmp_path / "run"), "--out", str(out), "--methods", "off,weak"]) == 2
    assert "no prompt of which there are pictures of off, weak" in capsys.readouterr().err


def test_ratios_are_taken_within_a_round(cost: ModuleType) -> None:
    seconds = {cost.PLAIN: [1.0, 10.0, 2.0], "guided": [1.5, 15.0, 3.0]}
    found = cost.summary(seconds, batch=4)["guided"]
    assert (found["ratio"], found["ratio_lower_quartile"], found["ratio_upper_quartile"]) == (1.5, 1.5, 1.5)
    assert found["seconds_per_picture"] == 3.0 / 4


@pytest.mark.slow
def test_the_cost_benchmark_runs(
    cost: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cost.json"
    arguments = ["--models", "playground", "--repeats", "1", "--steps", "16", "--json", str(path)]

    assert cost.main(arguments) == 0

    assert "StableDiffusionPipelineSafe, medium" in capsys.readouterr().out
    assert json.loads(path.read_text())["summary"]["playground, 1"][cost.PLAIN]["ratio"] == 1
