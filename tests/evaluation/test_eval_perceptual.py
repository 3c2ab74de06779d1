"""CLIP score and LPIPS on networks of the real classes with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import TEXT_LENGTH, tiny_clip
from tiny_detectors import clip_pixels, clip_tokenizer, pictures
from transformers import CLIPModel

from sldcore.errors import ConfigurationError, ModelError
from sldcore.evaluation.perceptual import clip_score, lpips

PROMPTS = ["a red knight", "a dog", "two cats on a very long sofa", "", "a red knight"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@torch.no_grad()
def cosine(folder: Path, image: Image.Image, prompt: str) -> float:
    """By the parts of the model, one picture and one prompt at a time."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), clip_tokenizer()
    ids = tokenizer(prompt, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")["input_ids"]
    text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    seen = model.visual_projection(model.vision_model(pixel_values=clip_pixels([image])).pooler_output)
    return float(torch.nn.functional.cosine_similarity(text, seen))


def test_the_clip_score_is_100_times_the_cosine(folder: Path) -> None:
    found = clip_score(pictures(5), PROMPTS, folder, device="cpu", batch_size=2)
    expected = [
        100 * cosine(folder, image, prompt) for image, prompt in zip(pictures(5), PROMPTS, strict=True)
    ]
    assert found == pytest.approx(np.array(expected), abs=1e-3)
    assert np.ptp(found) > 1


def test_arrays_score_as_the_pictures_that_they_hold(folder: Path) -> None:
    arrays = [np.asarray(picture) for picture in pictures(2)]
    assert clip_score(arrays, PROMPTS[:2], folder, device="cpu") == pytest.approx(
        clip_score(pictures(2), PROMPTS[:2], folder, device="cpu")
    )


def test_a_prompt_longer_than_the_encoder_is_cut(folder: Path) -> None:
    cut = "a" * (TEXT_LENGTH - 2)
    long, short = clip_score(pictures(1) * 2, [cut + "zzzz" * 50, cut], folder, device="cpu")
    assert long == pytest.approx(short, rel=0.5)
    assert np.isfinite(long)


def test_a_clip_without_pictures_scores_nothing(folder: Path) -> None:
    assert clip_score([], [], folder).shape == (0,)


def test_a_folder_without_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        clip_score(pictures(1), ["a"], tmp_path)


def test_every_picture_needs_a_prompt(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="2 pictures, 1 prompts"):
        clip_score(pictures(2), ["a"], folder)


@pytest.mark.parametrize("library", ["torchvision", "torchmetrics"])
def test_lpips_without_its_libraries_says_what_to_install(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'sldcore\[fidelity\]'"):
        lpips(pictures(1), pictures(1), "weights.safetensors")


def test_lpips_with_another_network_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="available: alex, vgg"):
        lpips(pictures(1), pictures(1), "weights.safetensors", network="squeeze")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    network = torchvision.models.alexnet(weights=None)
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.safetensors"
    save_file({name: weight for name, weight in network.state_dict().items() if "features" in name}, path)
    return path


def large(number: int) -> list[Any]:
    return pictures(number, size=(80, 72))


def test_lpips_is_torchmetrics_with_the_weights_given(alexnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file
    from torchmetrics.functional.image import lpips as theirs
    from torchvision.models import alexnet as made

    network = made(weights=None)
    network.load_state_dict(load_file(alexnet), strict=False)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: network.features)
    a, b = (
        torch.stack([torch.tensor(np.asarray(x)).permute(2, 0, 1) for x in some]) / 255
        for some in (large(4)[:2], large(4)[2:])
    )
    expected = theirs.learned_perceptual_image_patch_similarity(
        a, b, "alex", reduction="none", normalize=True
    )
    found = lpips(large(4)[:2], large(4)[2:], alexnet, network="alex")
    assert found == pytest.approx(expected.numpy(), rel=1e-4)


def test_lpips_of_equal_pictures_is_0_and_of_others_positive(alexnet: Path) -> None:
    same, other = lpips(large(2), [large(2)[0], large(1)[0]], alexnet, network="alex")
    assert same == 0
    assert other > 1e-4


def test_lpips_with_weights_of_another_network_is_refused(alexnet: Path) -> None:
    with pytest.raises(ModelError, match="not those of torchvision's vgg network"):
        lpips(large(1), large(1), alexnet, network="vgg")


def test_lpips_with_a_file_that_is_no_weights_is_refused(alexnet: Path, tmp_path: Path) -> None:
    broken = tmp_path / "alexnet.pth"
    broken.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelError, match="cannot read weights"):
        lpips(large(1), large(1), broken, network="alex")
