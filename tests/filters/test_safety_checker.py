"""safety-checker, on checkers of diffusers' class with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_detectors import VISION, clip_pixels, contexts, pictures, saved_clip_like, spread
from transformers import CLIPConfig

from sldcore.catalogue import checked_options
from sldcore.errors import ModelError
from sldcore.filters.safety_checker import KIND
from sldcore.testing import PostFilterContract

IMAGES = 12


def checker(limit: float, special: float) -> StableDiffusionSafetyChecker:
    """A checker with random concepts, all with the same thresholds."""
    model = spread(StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=16)))
    model.concept_embeds_weights.data.fill_(limit)
    model.special_care_embeds_weights.data.fill_(special)
    return model


@torch.no_grad()
def cosines(model: Any, images: list[Image.Image], kind: str = "concept") -> np.ndarray:
    """[B, K], without anything of ours."""
    embeds = model.visual_projection(model.vision_model(clip_pixels(images)).pooler_output)
    concepts = getattr(model, f"{kind}_embeds")
    return torch.nn.functional.cosine_similarity(embeds[:, None], concepts[None], dim=-1).numpy()


def highest(limit: float = 1.0) -> np.ndarray:
    """Each picture's highest cosine."""
    found: np.ndarray = cosines(checker(limit, 2), pictures(IMAGES)).max(1)
    return found


def make(folder: Path, **options: Any) -> Any:
    return KIND.create(checked_options(KIND, {"model": str(folder), "device": "cpu", **options}))


def flags(folder: Path, images: list[Image.Image], **options: Any) -> list[bool]:
    return [verdict.flagged for verdict in make(folder, **options).review(images, contexts(len(images)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checker that flags half of the pictures, and has special care for none."""
    return saved_clip_like(checker(float(np.median(highest())), 2), tmp_path_factory.mktemp("checker"))


class TestContract(PostFilterContract):
    """What every post-filter must do."""

    contribution = KIND

    @pytest.fixture(autouse=True)
    def _saved(self, folder: Path) -> None:
        self.options = {"model": str(folder), "device": "cpu"}


def test_scores_are_mapped_cosines_of_all_concepts(folder: Path) -> None:
    images, model = pictures(), checker(1, 2)
    verdicts = make(folder).review(images, contexts(5))
    found = [[v.scores[f"concept-{k}"] for k in range(17)] for v in verdicts]
    special = [[v.scores[f"special-{k}"] for k in range(3)] for v in verdicts]
    np.testing.assert_allclose(found, (1 + cosines(model, images)) / 2, atol=1e-5)
    np.testing.assert_allclose(special, (1 + cosines(model, images, "special_care")) / 2, atol=1e-5)
    assert all(len(v.scores) == 20 and len(v.thresholds) == 17 for v in verdicts)


@pytest.mark.parametrize("shift", [0.0, -0.005, -0.012])
def test_flags_are_those_of_diffusers_with_and_without_special_care(tmp_path: Path, shift: float) -> None:
    """Just above the median, special care decides for some pictures."""
    images = pictures(IMAGES)
    care = float(np.median(cosines(checker(1, 1), images, "special_care").max(1)))
    model = checker(float(np.median(highest())) - shift, care)
    saved_clip_like(model, tmp_path)
    blackened = [np.ones((2, 2, 3)) for _ in images]
    _, expected = model(clip_pixels(images), blackened)
    assert flags(tmp_path, images) == expected


def test_special_care_lowers_the_thresholds_of_that_picture_only(tmp_path: Path) -> None:
    images = pictures(IMAGES)
    special = cosines(checker(1, 1), images, "special_care").max(1)
    one = int(special.argmax())
    limit = float(np.sort(special)[-2:].mean())
    verdicts = make(saved_clip_like(checker(0.3, limit), tmp_path)).review(images, contexts(IMAGES))
    thresholds = [v.thresholds["concept-0"] for v in verdicts]
    expected = [(1 + 0.3 + 0.0005 - (0.01 if index == one else 0)) / 2 for index in range(IMAGES)]
    assert thresholds == pytest.approx(expected, abs=1e-6)


def test_the_offset_moves_the_border(folder: Path) -> None:
    images, limit = pictures(IMAGES), float(np.median(highest()))
    for offset in (-0.05, -0.01, 0.0, 0.01, 0.05):
        expected = [bool(cosine - limit + offset > 0.0005) for cosine in highest()]
        assert flags(folder, images, offset=offset) == expected
    assert flags(folder, images, offset=1) == [True] * IMAGES
    assert flags(folder, images, offset=-1) == [False] * IMAGES


def test_only_the_third_of_three_is_flagged_whatever_the_batch_size(tmp_path: Path) -> None:
    order = highest().argsort()[[0, 1, -1]]
    images = [pictures(IMAGES)[index] for index in order]
    limit = float(highest()[order][1:].mean())
    saved_clip_like(checker(limit, 2), tmp_path)
    for size in (1, 2, 3):
        assert flags(tmp_path, images, batch_size=size) == [False, False, True]


def test_a_flagged_picture_is_not_blackened(folder: Path) -> None:
    images = pictures(IMAGES)
    assert any(flags(folder, images))
    assert [image.tobytes() for image in images] == [image.tobytes() for image in pictures(IMAGES)]


def test_reasons_name_the_concepts_above_their_thresholds(folder: Path) -> None:
    for verdict in make(folder).review(pictures(IMAGES), contexts(IMAGES)):
        assert verdict.flagged == bool(verdict.above)
        assert all(name in verdict.reason for name in verdict.above)


def test_a_pipeline_folder_gives_its_checker_and_its_feature_extractor(folder: Path, tmp_path: Path) -> None:
    model = checker(float(np.median(highest())), 2)
    model.save_pretrained(tmp_path / "safety_checker")
    (tmp_path / "feature_extractor").mkdir()
    preprocessor = (folder / "preprocessor_config.json").read_text()
    (tmp_path / "feature_extractor" / "preprocessor_config.json").write_text(preprocessor)
    expected = make(folder).review(pictures(), contexts(5))
    assert make(tmp_path).review(pictures(), contexts(5)) == expected
    assert make(tmp_path / "safety_checker").review(pictures(), contexts(5)) == expected


def test_files_as_they_were_published_load(folder: Path, tmp_path: Path) -> None:
    """Weights with one more ``vision_model``, position ids beside them, and a preprocessor that is called an extractor."""
    saved_clip_like(checker(float(np.median(highest())), 2), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    inner = "vision_model.vision_model."
    old = {
        (
            inner + name.removeprefix(inner).removeprefix("vision_model.") if "vision_model" in name else name
        ): tensor
        for name, tensor in weights.items()
    }
    old[f"{inner}embeddings.position_ids"] = torch.arange(17)[None]
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    preprocessor = {
        "crop_size": 32,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 32,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    found = [v.scores for v in make(tmp_path).review(pictures(), contexts(5))]
    assert found == [v.scores for v in make(folder).review(pictures(), contexts(5))]


def test_without_a_preprocessor_it_is_refused(tmp_path: Path) -> None:
    checker(1, 1).save_pretrained(tmp_path / "checker")
    with pytest.raises(ModelError, match="no preprocessor_config"):
        make(tmp_path / "checker")


def test_a_clip_model_is_no_checker(folder: Path, tmp_path: Path) -> None:
    """Its concepts would be made up: all ones."""
    saved_clip_like(checker(1, 1), tmp_path)
    weights = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if "concept" not in name
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 2 weights of StableDiffusionSafetyChecker"):
        make(tmp_path)


def test_concepts_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    model = checker(1, 1)
    model.concept_embeds_weights.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        make(saved_clip_like(model, tmp_path))
