"""What ``sld generate`` passes on to the loader, and which models it refuses before torch is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sldcore.cli import app


def sld(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def index(folder: Path, **content: Any) -> Path:
    folder.mkdir()
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", **content})
    )
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the loader was called with; it gives the playground."""
    from sldcore import load_pipeline

    calls: list[dict[str, Any]] = []

    def note(model: str, **options: Any) -> Any:
        calls.append(options)
        return load_pipeline("playground", device="cpu")

    monkeypatch.setattr("sldcore.loading.load_pipeline", note)
    return calls


QUICK = ("--policy", "off", "--steps", "1", "--guidance-scale", "2")


def test_options_of_loading_are_passed_on(loads: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "flux.gguf").write_bytes(b"")
    model = index(tmp_path / "model")
    options = [
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
        "--offload",
        "group",
        "--vae-slicing",
        "--vae-tiling",
    ]
    files = ["--transformer", tmp_path / "flux.gguf", "--config", model]
    result = sld("x", *QUICK, "--model", model, *options, *files, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert loads == [
        {
            "device": "cpu",
            "dtype": "bfloat16",
            "offload": "group",
            "vae_slicing": True,
            "vae_tiling": True,
            "transformer": tmp_path / "flux.gguf",
            "config": model,
            "trust_remote_code": False,
        }
    ]


def test_code_of_a_model_is_run_only_if_asked_for(loads: list[dict[str, Any]], tmp_path: Path) -> None:
    model = index(tmp_path / "model", _class_name=["mine", "Mine"])
    refused = sld("x", *QUICK, "--model", model, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "--trust-remote-code" in refused.stderr and not loads
    assert sld("x", *QUICK, "--model", model, "--trust-remote-code", "--out", tmp_path / "out").exit_code == 0
    assert loads[0]["trust_remote_code"] is True


def test_pictures_with_another_transformer_are_no_finished_ones(
    loads: list[dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_bytes(b"")
    common = ("x", *QUICK, "--model", index(tmp_path / "model"), "--out", tmp_path / "out")
    assert sld(*common, "--transformer", tmp_path / "one.gguf").exit_code == 0
    assert sld(*common, "--transformer", tmp_path / "one.gguf", "--resume").exit_code == 0
    assert len(loads) == 1
    other = sld(*common, "--transformer", tmp_path / "two.gguf", "--resume")
    assert other.exit_code == 2
    assert "another request" in other.stderr


REFUSED = {
    "a folder without an index": (lambda place: place.mkdir(), "holds no model_index.json"),
    "a class that no family serves": (
        lambda place: index(place, _class_name="StableAudioPipeline"),
        "which no family serves",
    ),
    "code of its own": (lambda place: index(place, unet=["mine", "Mine"]), "unet/mine.py"),
    "a modular pipeline": (
        lambda place: place.mkdir() or (place / "modular_model_index.json").write_text("{}"),
        "modular pipeline",
    ),
    "a file that is no safetensors": (
        lambda place: place.write_bytes(b""),
        "is not a .safetensors checkpoint",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_cannot_be_used_is_bad_input(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "model")
    result = sld("x", "--model", tmp_path / "model", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--transformer", "--config"])
def test_files_that_are_not_there_are_bad_input(option: str, tmp_path: Path) -> None:
    result = sld("x", option, tmp_path / "no.gguf", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "no such file or folder" in result.stderr


def test_code_of_a_model_is_refused_without_loading_torch(tmp_path: Path) -> None:
    model = index(tmp_path / "model", unet=["mine", "Mine"])
    code = (
        "import sys; from sldcore.cli import app\n"
        "try: app(['generate', 'x', '--model', sys.argv[1], '--out', sys.argv[2]])\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert code == 2 and not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(model), str(tmp_path / "out")], check=True)


def test_offloading_on_the_cpu_is_bad_input(tmp_path: Path) -> None:
    result = sld("x", *QUICK, "--device", "cpu", "--offload", "model", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "the device is the CPU" in result.stderr
    assert not (tmp_path / "out").exists()
