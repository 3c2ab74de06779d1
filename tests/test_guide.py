"""The code in the guide runs, in the order in which it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sldcore.types import Result, Trace

GUIDE = (Path(__file__).parent.parent / "docs" / "guide.md").read_text(encoding="utf-8")


def test_every_python_block_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "docs/guide.md", "exec"), names)
    assert isinstance(names["result"], Result)
    assert [report.rows for report in names["result"].reports] == [150, 150, 100, 100]
    assert isinstance(names["trace"], Trace)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["when.png", "where.png"]
    assert "concept rows" in capsys.readouterr().out
