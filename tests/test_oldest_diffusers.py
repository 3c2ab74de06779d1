"""Guidance works with the oldest diffusers that pyproject.toml allows, too: its guiders are called experimental."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTED = ("tests/test_guider.py", "tests/families/test_stable_diffusion_family.py")


def oldest() -> str:
    """The lowest version of diffusers that is allowed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = (each for each in project["dependencies"] if re.match(r"diffusers\b", each))
    return f"{wanted.partition('>=')[2]}.0"


@pytest.mark.slow
def test_guiders_and_families_work_with_the_oldest_diffusers(tmp_path: Path) -> None:
    # diffusers brings dependencies of its own, which newer ones no longer have
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--target",
        str(tmp_path),
    ]
    subprocess.run([*pip, "--no-deps", f"diffusers=={oldest()}"], check=True, timeout=300)
    subprocess.run([*pip, "httpx"], check=True, timeout=300)
    own = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), own]))}
    code = f"import diffusers; assert diffusers.__version__ == '{oldest()}', diffusers.__version__"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"\d+ passed", done.stdout)
