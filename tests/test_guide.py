"""The code in the guide runs, in the order in which it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sldcore.guidance.kinds import KINDS
from sldcore.policy import SafetyPolicy
from sldcore.resolution import check_policies
from sldcore.types import Result, Trace

GUIDE = (Path(__file__).parent.parent / "docs" / "guide.md").read_text(encoding="utf-8")


def test_every_python_block_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, "docs/guide.md", "exec"), names)
    assert isinstance(names["result"], Result)
    assert [report.rows for report in names["result"].reports] == [150, 150, 100, 100]
    assert isinstance(names["trace"], Trace)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["references.safetensors", "when.png", "where.png"]
    assert names["kept_away"].reports[0].rows == 100
    gated = [(report.probes[0].guides, report.rows) for report in names["gated"].reports]
    assert gated == [(False, 107), (True, 168)]
    said = capsys.readouterr().out
    assert "concept rows" in said
    assert "1 acted because 'inappropriate/violence' reached" in said


@pytest.mark.parametrize(
    "text", re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL), ids=lambda text: text[:24]
)
def test_every_yaml_block_of_the_guide_is_a_policy_that_can_be_resolved(text: str) -> None:
    policy = SafetyPolicy.parse(text, source="docs/guide.md")
    check_policies([policy])
    assert SafetyPolicy.parse(policy.dump()).digest == policy.digest


def test_the_guide_names_every_method_of_the_core_and_the_noise_levels_of_the_presets() -> None:
    rows = re.findall(r"^\| `([a-z+-]+)` \| .* \| (?:none|one.*) \|$", GUIDE, re.M)
    assert sorted(rows) == sorted(kind.name for kind in KINDS)
    levels = [SafetyPolicy.preset(f"{name}-noise").guidance for name in ("weak", "medium", "strong", "max")]
    starts = [f"{guidance.window.start:g}".removeprefix("0") for guidance in levels if guidance is not None]
    assert f"({', '.join(starts[:-1])} and {starts[-1]})" in GUIDE
