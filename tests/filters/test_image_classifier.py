"""image-classifier, on classifiers of the real class with random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detectors import VISION, contexts, pictures, saved, spread, square_pixels
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTModel

from sldcore.catalogue import checked_options
from sldcore.errors import ModelError, PluginError
from sldcore.filters.image_classifier import KIND
from sldcore.testing import PostFilterContract

LABELS = {0: "normal", 1: "nsfw", 2: "gore"}


def config(**options: Any) -> ViTConfig:
    names = options.pop("labels", LABELS)
    return ViTConfig(**VISION, id2label=names, label2id={name: key for key, name in names.items()}, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(spread(ViTForImageClassification(config())), tmp_path_factory.mktemp("classifier"))


def make(folder: Path, **options: Any) -> Any:
    return KIND.create(
        checked_options(KIND, {"model": str(folder), "bad": "nsfw", "device": "cpu", **options})
    )


def expected(folder: Path, images: list[Image.Image]) -> torch.Tensor:
    """The classifier's logits, without anything of ours."""
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(square_pixels(images)).logits
    return logits


class TestContract(PostFilterContract):
    """What every post-filter must do."""

    contribution = KIND

    @pytest.fixture(autouse=True)
    def _saved(self, folder: Path) -> None:
        self.options = {"model": str(folder), "bad": "nsfw, gore", "device": "cpu"}


def test_scores_are_the_softmax_of_the_logits(folder: Path) -> None:
    images = pictures()
    found = [list(verdict.scores.values()) for verdict in make(folder).review(images, contexts(5))]
    wanted = expected(folder, images).double().numpy()
    wanted = np.exp(wanted) / np.exp(wanted).sum(1, keepdims=True)
    assert np.ptp(wanted[:, 1]) > 0.05, "the pictures must differ for this test to say something"
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_multi_label_model_is_scored_label_by_label(tmp_path: Path) -> None:
    model = spread(ViTForImageClassification(config(problem_type="multi_label_classification")))
    images = pictures()
    found = [list(v.scores.values()) for v in make(saved(model, tmp_path)).review(images, contexts(5))]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-expected(tmp_path, images).numpy())), atol=1e-5)


def test_only_bad_labels_flag_and_each_on_its_own(folder: Path) -> None:
    images = pictures(12)
    scores = [v.scores for v in make(folder).review(images, contexts(12))]
    limit = float(np.median([max(s["nsfw"], s["gore"]) for s in scores]))
    verdicts = make(folder, bad="gore, nsfw", threshold=limit).review(images, contexts(12))
    assert [v.flagged for v in verdicts] == [max(s["nsfw"], s["gore"]) >= limit for s in scores]
    assert {v.flagged for v in verdicts} == {True, False}
    assert all(v.thresholds == {"nsfw": limit, "gore": limit} for v in verdicts)
    assert all(bool(v.reason) == v.flagged for v in verdicts)


def test_only_the_third_of_three_is_flagged_whatever_the_batch_size(folder: Path) -> None:
    images = sorted(
        pictures(3), key=lambda image: make(folder).review([image], contexts(1))[0].scores["nsfw"]
    )
    scores = [v.scores["nsfw"] for v in make(folder).review(images, contexts(3))]
    limit = (scores[1] + scores[2]) / 2
    for size in (1, 2, 3):
        verdicts = make(folder, threshold=limit, batch_size=size).review(images, contexts(3))
        assert [v.flagged for v in verdicts] == [False, False, True]


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3), (3, 1), (4, 3), (1, 60), (1600, 1200)])
def test_a_picture_of_one_colour_is_judged_the_same_in_every_size(
    folder: Path, size: tuple[int, int]
) -> None:
    """One pixel high could be taken for one channel."""
    colour = (200, 30, 90)
    one, other = (Image.new("RGB", size, colour), Image.new("RGB", (32, 32), colour))
    small, plain = make(folder).review([one, other], contexts(2))
    assert small.scores == pytest.approx(plain.scores, abs=1e-5)


def test_the_hash_is_that_of_the_weights_file(folder: Path) -> None:
    (verdict,) = make(folder).review(pictures(1), contexts(1))
    assert verdict.weights == sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def test_weights_in_parts_are_hashed_whole_and_judge_the_same(folder: Path, tmp_path: Path) -> None:
    whole = ViTForImageClassification.from_pretrained(folder)
    saved(whole, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1
    (verdict,) = make(tmp_path).review(pictures(1), contexts(1))
    assert verdict.weights == sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:16]
    assert verdict.scores == make(folder).review(pictures(1), contexts(1))[0].scores


def test_a_model_whose_head_is_missing_is_refused_and_not_made_up(tmp_path: Path) -> None:
    saved(ViTModel(config()), tmp_path)
    with pytest.raises(ModelError, match=r"lacks 2 weights of ViTForImageClassification \('classifier.bias'"):
        make(tmp_path)


def test_pickled_weights_are_refused_before_anything_opens_them(folder: Path, tmp_path: Path) -> None:
    saved(ViTForImageClassification(config()), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        make(tmp_path)


@pytest.mark.parametrize("asked", ["owner/repository", "/nowhere/at/all"])
def test_what_is_no_folder_is_refused_and_not_downloaded(asked: str) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        make(Path(asked))


def test_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    saved(ViTForImageClassification.from_pretrained(folder), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/other"}')
    with pytest.raises(ModelError, match="adapter"):
        make(tmp_path)


def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    saved(ViTForImageClassification.from_pretrained(folder), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"classifier.bias": str(folder / "model.safetensors")}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no safetensors file in"):
        make(tmp_path)


def test_code_that_comes_with_the_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    saved(ViTForImageClassification.from_pretrained(folder), tmp_path)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    read = json.loads((tmp_path / "config.json").read_text())
    read |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.C", "AutoModelForImageClassification": "mine.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(read))
    with pytest.raises(ModelError, match="cannot load"):
        make(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_an_unknown_label_names_the_nearest_one(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"no label 'nsfv'; did you mean 'nsfw'\? \(available: gore, normal, nsfw"
    ):
        make(folder, bad="nsfv")


def test_a_single_label_under_softmax_is_refused(tmp_path: Path) -> None:
    """It would score 1 for every picture, or with its label inverted, 0."""
    saved(ViTForImageClassification(config(labels={0: "nsfw"})), tmp_path)
    with pytest.raises(ModelError, match="softmax always gives 1"):
        make(tmp_path)


@pytest.mark.parametrize("options", [{"bad": " , "}, {"bad": ""}, {"threshold": 1.5}, {"batch_size": 0}])
def test_options_that_make_no_sense_are_refused(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(PluginError):
        make(folder, **options)


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="device 'quantum' cannot be used here"):
        make(folder, device="quantum")


def test_numbers_that_are_not_finite_raise(tmp_path: Path) -> None:
    model = spread(ViTForImageClassification(config()))
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        make(saved(model, tmp_path)).review(pictures(1), contexts(1))


def test_a_sliver_raises(folder: Path) -> None:
    with pytest.raises(ValueError, match="sides of more than 64 : 1"):
        make(folder).review([Image.new("RGB", (1, 65))], contexts(1))


@pytest.mark.parametrize(
    "module",
    ["image_classifier", "safety_checker", "clip_concepts", "q16", "q16_convert", "vlm_judge", "vlm_styles"],
)
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, sldcore.filters.{module}; print(sorted({{'torch', 'transformers', 'diffusers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
