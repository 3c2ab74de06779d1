"""q16, on a CLIP vision model of the real class with random weights and random prompts."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from tiny_detectors import SIZE, VISION, clip_pixels, contexts, pictures, saved_clip_like, spread
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from sldcore.catalogue import checked_options
from sldcore.errors import ModelError
from sldcore.filters.q16 import KIND
from sldcore.testing import PostFilterContract

WIDTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and beside it prompts that are close together, as learned ones are not far apart at a scale of 100."""
    folder = tmp_path_factory.mktemp("q16")
    model = spread(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=WIDTH)))
    random = np.random.default_rng(5)
    base = random.normal(size=(1, WIDTH))
    prompts = np.concatenate([base, 3 * base + 0.1 * random.normal(size=(1, WIDTH))]).astype(np.float32)
    save_file({"prompts": prompts}, folder / "q16.safetensors")
    return saved_clip_like(model, folder)


def make(folder: Path, **options: Any) -> Any:
    given = {"model": str(folder), "prompts": str(folder / "q16.safetensors"), "device": "cpu", **options}
    return KIND.create(checked_options(KIND, given))


def scores(folder: Path, images: list[Image.Image], **options: Any) -> list[float]:
    return [v.scores["inappropriate"] for v in make(folder, **options).review(images, contexts(len(images)))]


@torch.no_grad()
def expected(folder: Path, images: list[Image.Image]) -> np.ndarray:
    """The original's arithmetic, on NumPy: softmax of 100 times the cosines, second prompt."""
    from safetensors.numpy import load_file

    prompts = load_file(folder / "q16.safetensors")["prompts"]
    model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    embeds = model(pixel_values=clip_pixels(images)).image_embeds.numpy()
    embeds, prompts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (embeds, prompts))
    powers = np.exp(100.0 * (embeds @ prompts.T).astype(np.float64))
    found: np.ndarray = (powers / powers.sum(1, keepdims=True))[:, 1]
    return found


class TestContract(PostFilterContract):
    """What every post-filter must do."""

    contribution = KIND

    @pytest.fixture(autouse=True)
    def _saved(self, folder: Path) -> None:
        self.options = {"model": str(folder), "prompts": str(folder / "q16.safetensors"), "device": "cpu"}


def test_scores_are_the_softmax_of_the_scaled_cosines(folder: Path) -> None:
    wanted = expected(folder, pictures())
    assert np.ptp(wanted) > 0.05, "the pictures must differ for this test to say something"
    np.testing.assert_allclose(scores(folder, pictures()), wanted, atol=2e-4)


def test_the_default_threshold_is_the_choice_of_the_likelier_prompt(folder: Path) -> None:
    images = pictures(12)
    verdicts = make(folder).review(images, contexts(12))
    assert [v.flagged for v in verdicts] == [score > 0.5 for score in expected(folder, images)]
    assert all(v.thresholds == {"inappropriate": 0.5} and bool(v.reason) == v.flagged for v in verdicts)


def test_only_the_third_of_three_is_flagged_whatever_the_batch_size(folder: Path) -> None:
    images = sorted(pictures(3), key=lambda image: scores(folder, [image])[0])
    found = scores(folder, images)
    for size in (1, 2, 3):
        made = make(folder, batch_size=size, threshold=(found[1] + found[2]) / 2)
        assert [v.flagged for v in made.review(images, contexts(3))] == [False, False, True]


def test_a_whole_clip_model_does_as_well(folder: Path, tmp_path: Path) -> None:
    """ViT-L/14 is published with its text encoder."""
    text = {**SIZE, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**VISION, "projection_dim": WIDTH}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=WIDTH)
    whole = CLIPModel(config)
    whole.load_state_dict(CLIPVisionModelWithProjection.from_pretrained(folder).state_dict(), strict=False)
    saved_clip_like(whole, tmp_path)
    prompts = str(folder / "q16.safetensors")
    assert scores(tmp_path, pictures(), prompts=prompts) == pytest.approx(
        scores(folder, pictures()), abs=1e-5
    )


def test_the_hash_covers_model_and_prompts(folder: Path) -> None:
    (verdict,) = make(folder).review(pictures(1), contexts(1))
    both = (folder / "model.safetensors").read_bytes() + (folder / "q16.safetensors").read_bytes()
    assert verdict.weights == sha256(both).hexdigest()[:16]


def test_the_original_pickle_is_refused_with_the_way_to_convert_it(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"convert the original prompts.p with sldcore.filters.q16_convert"):
        make(folder, prompts=str(folder / "prompts.p"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": np.ones((2, WIDTH), np.float32)}, "no tensor 'prompts'"),
        ({"prompts": np.ones((2, WIDTH + 1), np.float32)}, r"\[2, 17\]"),
        ({"prompts": np.ones((3, WIDTH), np.float32)}, r"\[3, 16\]"),
        ({"prompts": np.ones((2, WIDTH), np.int32)}, "int32"),
        ({"prompts": np.full((2, WIDTH), np.nan, np.float32)}, "not finite"),
        ({"prompts": np.zeros((2, WIDTH), np.float32)}, "prompt of zeros"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, tensors: Any, message: str
) -> None:
    save_file(tensors, tmp_path / "q16.safetensors")
    with pytest.raises(ModelError, match=message):
        make(folder, prompts=str(tmp_path / "q16.safetensors"))


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_a_file_that_cannot_be_read_is_refused(folder: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "q16.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="cannot load the prompts"):
        make(folder, prompts=str(tmp_path / "q16.safetensors"))
