"""The guidance method of docs/plugins.md does what is said of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sldcore import SafetyEngine, SafetyPolicy, load_pipeline
from sldcore.guidance import base
from sldcore.testing import GuidanceContract

ROOT = Path(__file__).parent.parent
SECTION = (ROOT / "docs/plugins.md").read_text("utf-8").split("\n## Guidance methods\n")[1].split("\n## ")[0]
FILE = re.compile(r"<!-- (?:method|policy): (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


def defined() -> dict[str, Any]:
    """The names of the method's file."""
    names: dict[str, Any] = {}
    exec(compile(dict(FILE.findall(SECTION))["faded.py"], "docs/plugins.md", "exec"), names)
    return names


class TestFaded(GuidanceContract):
    """The example keeps what every method has to keep."""

    (contribution,) = defined()["sld_guidance_methods"]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the section."""
    made = tmp_path_factory.mktemp("faded")
    for name, content in FILE.findall(SECTION):
        (made / name).write_text(content, "utf-8")
    return made


@pytest.mark.sldcore_plugins
def test_the_example_acts_in_its_window_without_a_row(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["faded.py", "faded.yaml"]
    policies = ["off", SafetyPolicy.load(folder / "faded.yaml")]
    engine = SafetyEngine(load_pipeline("playground", device="cpu"), "off")
    prompts = ["a red knight on a meadow"] * 2
    result = engine.generate(
        prompts, seed=0, policies=policies, guidance_scale=4, num_inference_steps=10, output_type="np"
    )
    assert [(report.action, report.rows) for report in result.reports] == [("none", 20), ("none", 20)]
    assert result.trace.applied[1, 0].tolist() == [False] * 5 + [True] * 5
    assert not result.trace.evaluated.any()
    plain, faded = (np.asarray(image) for image in result.images)
    assert 0.01 < np.abs(plain - faded).mean() < 0.2
    assert faded.std() < plain.std()


def test_the_protocols_of_the_table_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)\(", SECTION, re.MULTILINE)
    assert [name for name, _ in rows] == [
        "SwapsTexts",
        "ActsWithoutRows",
        "LeavesOut",
        "Observes",
        "ReadsPrompts",
    ]
    assert all(hasattr(getattr(base, protocol), method) for protocol, method in rows)
