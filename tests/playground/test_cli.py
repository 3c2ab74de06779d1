"""``sld playground`` as a user meets it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from sldcore.cli import app
from sldcore.playground.stages import Settings


def test_show_draws_the_world(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["playground", "show", "--out", str(tmp_path / "new" / "world.png")])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "new" / "world.png") as sheet:
        assert min(sheet.size) > 600


def test_show_refuses_another_format_and_writes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["playground", "show", "--out", str(tmp_path / "world.jpg")])
    assert result.exit_code == 2
    assert "end it in .png" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_quick_training_prints_stages_and_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its steps, with fewer pictures in each, and in single precision."""
    fewer = replace(
        Settings.quick(),
        pictures=24,
        held_out=8,
        vae_batch=1,
        classifier_batch=4,
        unet_batch=2,
        bfloat16=False,
    )
    monkeypatch.setattr(Settings, "quick", lambda seed: fewer)
    result = CliRunner().invoke(app, ["playground", "train", "--quick", "--out", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "model" / "model_index.json").exists()
    for shown in ("vae 12/12 loss", "unet 10/10 loss", "vae psnr db", "model.work is no longer needed"):
        assert shown in " ".join(result.output.split())


def test_training_refuses_an_existing_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["playground", "train", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists already" in result.output


def test_an_interrupted_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press_ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sldcore.playground.training.train", press_ctrl_c)
    result = CliRunner().invoke(app, ["playground", "train", "--out", str(tmp_path / "model")])
    assert result.exit_code == 130
    assert "run the same command again" in " ".join(result.output.split())


def test_the_seed_reaches_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []

    def note(out: Path, work: Path, settings: Settings, report: object) -> dict[str, float]:
        asked.append(settings)
        return {}

    monkeypatch.setattr("sldcore.playground.training.train", note)
    CliRunner().invoke(app, ["playground", "train", "--out", str(tmp_path / "model"), "--seed", "3"])
    assert asked == [Settings(seed=3)]
