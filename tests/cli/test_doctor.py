from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sldcore
import sldcore.loading
from sldcore.cli import app
from sldcore.cli import doctor as command
from sldcore.errors import ModelError

runner = CliRunner()


def test_doctor_finds_the_playground_usable() -> None:
    result = runner.invoke(app, ["doctor", "--json"])
    content = json.loads(result.stdout)
    assert content["models"][0]["usable"] is True
    assert content["models"][0]["name"] == "playground"
    assert result.exit_code == 0


def test_doctor_reports_versions_and_the_processor() -> None:
    import torch

    findings = command.examine()
    assert findings.sldcore == sldcore.__version__
    assert findings.versions["torch"] == torch.__version__
    assert findings.devices[0].name == "cpu"


def test_doctor_says_why_the_playground_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ModelError("the weights are gone")

    monkeypatch.setattr(sldcore.loading, "load_pipeline", refuse)
    result = runner.invoke(app, ["doctor"])
    assert "NOT USABLE: ModelError: the weights are gone" in result.stdout
    assert result.exit_code == 1


def test_doctor_says_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = command._installed
    monkeypatch.setattr(command, "_installed", lambda name: None if name == "peft" else installed(name))
    monkeypatch.setattr(command, "_playground", lambda complete: command.Model("playground", complete, ""))
    result = runner.invoke(app, ["doctor"])
    assert "pip install 'sldcore[lora]'" in result.stdout
    assert result.exit_code == 0


def test_doctor_without_torch_reports_instead_of_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = command._installed
    monkeypatch.setattr(command, "_installed", lambda name: None if name == "torch" else installed(name))
    result = runner.invoke(app, ["doctor", "--json"])
    content = json.loads(result.stdout)
    assert content["missing"][0] == "pip install torch"
    assert content["models"] == [
        {"name": "playground", "usable": False, "detail": "required packages are missing"}
    ]
    assert result.exit_code == 1


def test_doctor_finds_pipelines_in_the_hub_s_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, class_name in (("sd", "StableDiffusionPipeline"), ("odd", "OddPipeline")):
        snapshot = tmp_path / f"models--someone--{name}" / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path), raising=False)
    models = {model.name: model.usable for model in command._cached_models()}
    assert models == {"someone/sd": True, "someone/odd": False}
