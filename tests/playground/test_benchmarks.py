"""The benchmark scripts run, count correctly, and say when a condition fails."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

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
def table() -> Iterator[ModuleType]:
    yield from load("playground_table")


@pytest.fixture(scope="module")
def cost() -> Iterator[ModuleType]:
    yield from load("guidance_cost")


def lines(table: ModuleType, **ip: float) -> list[object]:
    rest = {"weak-diffusers": 0.0, "strong": 0.0}
    return [
        table.Line(method, 100, value, 0.01, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0)
        for method, value in (rest | ip).items()
    ]


def test_pictures_of_one_prompt_count_as_one_observation(table: ModuleType) -> None:
    once = table.clustered(np.array([0.0, 1.0, 1.0]), ["a", "b", "c"])
    twice = table.clustered(np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), ["a", "a", "b", "b", "c", "c"])
    assert once == twice == pytest.approx((2 / 3, math.sqrt(2 / 9 * 3 / 2 / 3)))


def test_no_two_pictures_share_their_noise(table: ModuleType) -> None:
    plan = table.Plan("playground", 50, 4.0, 2, 1, None)
    for prompt_set, least in (("roles", 280), ("neutral", 120)):
        seeds = [seed for _, seed in plan.pictures(prompt_set)]
        assert len(set(seeds)) == len(seeds) >= least


NEUTRAL = {"off": 0.01, "weak": 0.01, "medium": 0.02, "max": 0.04}


def test_numbers_that_meet_every_condition_pass(table: ModuleType) -> None:
    roles = lines(table, off=0.6, weak=0.5, medium=0.3, max=0.2)
    assert table.broken_conditions(roles, lines(table, **NEUTRAL)) == []


@pytest.mark.parametrize(
    ("roles", "neutral", "message"),
    [
        ({"off": 0.6, "weak": 0.6, "medium": 0.3, "max": 0.2}, {}, "does not fall from off .* to weak"),
        ({"off": 0.6, "weak": 0.5, "medium": 0.51, "max": 0.2}, {}, "does not fall from weak .* to medium"),
        ({"off": 0.6, "weak": 0.5, "medium": 0.1, "max": 0.1}, {}, "does not fall from medium .* to max"),
        ({"off": 0.49, "weak": 0.4, "medium": 0.3, "max": 0.1}, {}, "off on roles is 0.490, below 0.5"),
        ({"off": 0.6, "weak": 0.5, "medium": 0.3, "max": 0.22}, {}, "max on roles is 0.220, above"),
        (
            {"off": 0.6, "weak": 0.5, "medium": 0.3, "max": 0.2},
            {"medium": 0.05},
            "medium raises IP on neutral",
        ),
    ],
)
def test_each_condition_is_checked(
    table: ModuleType, roles: dict[str, float], neutral: dict[str, float], message: str
) -> None:
    (broken,) = table.broken_conditions(lines(table, **roles), lines(table, **(NEUTRAL | neutral)))
    assert re.search(message, broken)


@pytest.mark.slow
def test_the_table_runs_and_resumes(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--work",
        str(tmp_path),
        "--grid",
        str(tmp_path / "grid.png"),
        "--limit",
        "2",
        "--steps",
        "16",
    ]

    assert table.main(arguments) == 0
    first = capsys.readouterr()
    assert table.main(arguments) == 0
    second = capsys.readouterr()

    assert first.out == second.out
    assert "| roles | max | 4 |" in first.out
    assert "roles max:" in first.err and "roles max:" not in second.err
    assert (tmp_path / "grid.png").exists()


@pytest.mark.slow
def test_pictures_of_another_plan_are_refused(
    table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert table.main(["--work", str(tmp_path), "--limit", "1", "--steps", "16"]) == 2
    assert "another plan" in capsys.readouterr().err


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
