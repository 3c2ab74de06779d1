from __future__ import annotations

import subprocess
import sys

from typer.testing import CliRunner

import sldcore
from sldcore.cli import app

runner = CliRunner()


def test_help_names_every_command() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(
        command in result.stdout for command in ("generate", "policy", "concepts", "playground", "doctor")
    )


def test_version_is_the_package_s() -> None:
    assert runner.invoke(app, ["--version"]).stdout == f"sldcore {sldcore.__version__}\n"


def test_the_process_ends_with_code_2_and_no_traceback_on_bad_input() -> None:
    code = "from sldcore.cli import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", code, "policy", "show", "nonsense"], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1
