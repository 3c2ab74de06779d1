"""What stops a run before Ray makes anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sldcore.cli import app
from sldcore.errors import ConfigurationError
from sldcore.evaluation.ray_cluster import ray_cluster


def test_a_run_without_ray_names_the_extra_and_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # an import finds nothing
    options = ["--policies", "off", "--limit", "1", "--steps", "2", "--device", "cpu", "--ray", "1", "--out"]
    result = CliRunner().invoke(app, ["eval", "run", "playground/roles", *options, str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "pip install 'sldcore[ray]'" in result.stderr
    assert "--processes N" in result.stderr


@pytest.mark.parametrize("address", [None, "auto"], ids=["own", "cluster"])
def test_the_environment_is_as_before_when_ray_is_missing(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = dict(os.environ)
    with pytest.raises(ConfigurationError, match=r"sldcore\[ray\]"), ray_cluster(1, address):
        raise AssertionError("there is no Ray")
    assert dict(os.environ) == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:head"])
def test_an_address_at_which_nobody_listens_is_said_at_once(address: str) -> None:
    said = f"cannot join a Ray cluster at '{address}'"
    with pytest.raises(ConfigurationError, match=said), ray_cluster(1, address):
        raise AssertionError("there is no cluster")
