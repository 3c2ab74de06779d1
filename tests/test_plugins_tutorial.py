"""The tutorial of docs/plugins.md, done by a machine: its files are written and its commands run, in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs/plugins.md").read_text("utf-8").split("## One file without packaging")[0]
STEP = re.compile(r"<!-- (run|install|file: (?P<path>\S+)) -->\n```\w+\n(?P<content>.*?)```", re.DOTALL)


def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "work"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment.pop("SLD_PLUGINS", None)

    def run(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    said: dict[str, str] = {}
    for step in STEP.finditer(TUTORIAL):
        if step["path"]:
            target = folder / step["path"]
            assert target.parent.is_dir(), f"{step['path']} goes where `sld plugins new` made nothing"
            target.write_text(step["content"], "utf-8")
        elif step[1] == "install":
            options = "--no-deps --no-build-isolation --no-index --disable-pip-version-check --quiet"
            run(f'"{sys.executable}" -m pip install {options} --target "{site}" .')
        else:
            for command in step["content"].splitlines():
                if command.startswith("cd "):
                    folder = folder / command.removeprefix("cd ")
                else:
                    said[command] = run(command)
    assert "passed" in said["pytest"]
    assert "sld-summit 0.1.0" in said["sld plugins list"]
    assert "sld-summit==0.1.0" in said["sld plugins freeze policy.yaml"].splitlines()
    (picture,) = json.loads((folder / "out/result.json").read_text("utf-8"))["pictures"]
    (verdict,) = picture["verdicts"]
    assert verdict["filter"] == "summit-glare" and 0 < verdict["scores"]["glare"] < 0.95
    assert set(picture["concepts"]) == {"summit/edges", "summit/climbing", "inappropriate"}
