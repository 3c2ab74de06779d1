"""A saved pipeline of every family is loaded by its own index, and ``sld generate`` draws with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cases_images
import cases_transformers
import cases_video
import numpy as np
import pytest
import torch
from family_checks import Case
from PIL import Image
from typer.testing import CliRunner, Result

from sldcore import load_pipeline
from sldcore.cli import app
from sldcore.cli.animation import read_account
from sldcore.families import family_of
from sldcore.provenance import read_metadata

EVERY = [*cases_images.CASES, *cases_transformers.CASES, *cases_video.CASES]
CANNOT_BE_SAVED = {
    "Cosmos": "the safety checker of the miniature is a stand-in",
    "Kolors": "the tokenizer of the miniature has no file",
    "LongCatImage": "the miniature has no text processor, which the class insists on",
}
ONE_EACH = [
    pytest.param(case, id=kind.__name__, marks=[pytest.mark.skip(CANNOT_BE_SAVED[kind.__name__])])
    if kind.__name__ in CANNOT_BE_SAVED
    else pytest.param(case, id=kind.__name__)
    for kind, case in {case.family: case for case in reversed(EVERY)}.items()
]
BY_NAME = {case.name: case for case in EVERY}


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # what Chroma does itself
@pytest.mark.parametrize("case", ONE_EACH)
def test_a_saved_pipeline_is_loaded_with_its_class_weights_and_family(case: Case, tmp_path: Path) -> None:
    pipe = case.pipe()
    pipe.save_pretrained(tmp_path / "model")
    loaded = load_pipeline(tmp_path / "model", device="cpu")
    assert type(loaded).__name__ == type(pipe).__name__
    assert type(family_of(loaded)) is case.family
    weights = getattr(pipe, case.module).state_dict()
    torch.testing.assert_close(getattr(loaded, case.module).state_dict(), weights)
    assert next(iter(getattr(loaded, case.module).parameters())).dtype == torch.float32


POLICY = """
name: test
guidance: {method: sld, options: {scale: 20, threshold: 10}, window: {unit: steps, start: 0}}
concepts: [{text: "blood, weapons"}]
"""


def generate(case: Case, place: Path, *arguments: Any) -> tuple[Result, Path]:
    case.pipe().save_pretrained(place / "model")
    (place / "policy.yaml").write_text(POLICY)
    out = place / "out"
    command = ["generate", "a red knight on a meadow", "a blue cat in the snow", "--steps", "3"]
    command += ["--model", str(place / "model"), "--policy", str(place / "policy.yaml"), "--out", str(out)]
    return CliRunner().invoke(app, [*command, *map(str, arguments)]), out


def document(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


PICTURES = ("StableDiffusionXL", "StableDiffusion3", "Flux", "QwenImage")


@pytest.mark.parametrize("name", PICTURES)
def test_generate_draws_with_a_family_under_guidance(name: str, tmp_path: Path) -> None:
    size = ("--width", 32, "--height", 32)
    result, out = generate(BY_NAME[name], tmp_path, "--guidance-scale", 5, *size, "--compare")
    assert result.exit_code == 0, result.output
    pictures = document(out)["pictures"]
    assert all(each["trace"][0]["steps_applied"] for each in pictures)
    for picture in pictures:
        shown, unguided = (
            np.asarray(Image.open(out / picture["files"][role])).astype(int)
            for role in ("picture", "unguided")
        )
        assert shown.shape == (32, 32, 3)
        assert np.abs(shown - unguided).max() > 0


VIDEOS = {"CogVideoX": 9, "AnimateDiff": 4, "LTX": 9, "Wan": 5}


@pytest.mark.parametrize(("name", "frames"), VIDEOS.items())
def test_generate_writes_videos_as_animations_with_a_still(name: str, frames: int, tmp_path: Path) -> None:
    call = BY_NAME[name].call
    size = ("--width", call.get("width", 32), "--height", call.get("height", 32))
    options = ("--guidance-scale", 5, "--num-frames", frames, "--fps", 10, *size)
    result, out = generate(BY_NAME[name], tmp_path, *options, "--compare")
    assert result.exit_code == 0, result.output
    first, second = document(out)["pictures"]
    assert first["files"]["video"] == "0000-0.webp"
    for entry in (first, second):
        assert set(entry["files"]) == {"video", "picture", "unguided", "difference", "comparison", "curves"}
        with Image.open(out / entry["files"]["video"]) as video:
            assert 1 < video.n_frames <= frames  # equal frames become one
            assert video.info["loop"] == 0
        account = read_account(out / entry["files"]["video"])
        assert (
            account is not None
            and account["picture"] == read_metadata(out / entry["files"]["picture"])["picture"]
        )
    again, _ = generate(BY_NAME[name], tmp_path, *options, "--compare", "--resume")
    assert again.exit_code == 0, again.output
    assert "pictures" not in again.stderr, "nothing was left to do"


def test_a_pipeline_without_the_argument_says_what_it_takes(tmp_path: Path) -> None:
    result, out = generate(BY_NAME["StableDiffusion3"], tmp_path, "--num-frames", 8)
    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert (
        "a StableDiffusion3Pipeline takes no --num-frames; of these options it takes --steps, --guidance-scale"
        in message
    )
    assert not out.exists()


def test_guidance_that_a_pipeline_has_off_by_default_is_asked_for_with_the_option(tmp_path: Path) -> None:
    result, out = generate(BY_NAME["Flux"], tmp_path)
    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert "true_cfg_scale is 1, which turns classifier-free guidance off, and policy 'test'" in message
    assert "give a --guidance-scale above 1" in message
    assert not out.exists()


def test_a_pipeline_that_starts_from_pictures_is_refused(tmp_path: Path) -> None:
    result, out = generate(BY_NAME["StableDiffusion3Img2Img"], tmp_path)
    assert result.exit_code == 2
    assert "makes pictures from more than a prompt" in " ".join(result.stderr.split())
    assert not out.exists()


def test_a_scheduler_that_does_not_fit_the_model_is_bad_input(tmp_path: Path) -> None:
    case = BY_NAME["StableDiffusion3"]
    case.pipe().save_pretrained(tmp_path / "model")
    (tmp_path / "policy.yaml").write_text(POLICY + "scheduler: ddim\n")
    command = ["generate", "x", "--model", str(tmp_path / "model"), "--policy", str(tmp_path / "policy.yaml")]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "Names that fit: dpm++2m, flow-euler, heun, unipc" in " ".join(result.stderr.split())
