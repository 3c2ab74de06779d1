"""clip-concepts, on CLIP and SigLIP models of the real classes with random weights."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detectors import (
    SIZE,
    VISION,
    clip_pixels,
    clip_tokenizer,
    contexts,
    gemma_tokenizer,
    pictures,
    saved,
    saved_clip_like,
    spread,
    square_pixels,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from sldcore.catalogue import checked_options
from sldcore.errors import ConceptError, ConfigurationError, ModelError
from sldcore.filters.clip_concepts import KIND, NEUTRAL
from sldcore.testing import PostFilterContract

TEXTS = {"own/blood": ("an image showing blood",), "own/theft": ("theft",)}
WINDOW = 77


def scaled(model: Any, scale: float, bias: float | None = None) -> Any:
    """The model with a learned scale that keeps scores off 0 and 1."""
    model.logit_scale.data.fill_(np.log(scale))
    if bias is not None:
        model.logit_bias.data.fill_(bias)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    text = {
        **SIZE,
        "vocab_size": 514,
        "max_position_embeddings": WINDOW,
        "bos_token_id": 512,
        "eos_token_id": 513,
    }
    model = spread(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)), seed=3)
    clip_tokenizer().save_pretrained(folder)
    return saved_clip_like(scaled(model, 8), folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    text = {**SIZE, "vocab_size": 128, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1}
    model = spread(SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)), seed=4)
    gemma_tokenizer(padding_side="right").save_pretrained(folder)
    return saved(scaled(model, 6, -0.5), folder)


def make(folder: Path, **options: Any) -> Any:
    return KIND.create(checked_options(KIND, {"model": str(folder), "device": "cpu", **options}))


def scores(
    folder: Path, images: list[Image.Image], texts: Any = None, **options: Any
) -> list[dict[str, float]]:
    verdicts = make(folder, **options).review(images, contexts(len(images), texts or TEXTS))
    return [dict(verdict.scores) for verdict in verdicts]


@torch.no_grad()
def clip_logits(folder: Path, images: list[Image.Image], texts: list[str]) -> np.ndarray:
    """transformers' own logits, [B, T], one text at a time."""
    model = CLIPModel.from_pretrained(folder).eval()
    columns = []
    for text in texts:
        ids = torch.tensor([clip_tokenizer()(text)["input_ids"]])
        columns.append(model(input_ids=ids, pixel_values=clip_pixels(images)).logits_per_image[:, 0])
    return torch.stack(columns, 1).double().numpy()


@torch.no_grad()
def siglip_logits(folder: Path, images: list[Image.Image], texts: list[str]) -> np.ndarray:
    """transformers' own logits, [B, T]: texts in lower case, padded to the window, no mask."""
    model = SiglipModel.from_pretrained(folder).eval()
    lower = [text.lower() for text in texts]
    tokens = gemma_tokenizer(padding_side="right")(lower, padding="max_length", max_length=64)["input_ids"]
    found = model(input_ids=torch.tensor(tokens), pixel_values=square_pixels(images)).logits_per_image
    return found.double().numpy()


class Contract(PostFilterContract):
    """What every post-filter must do; the pictures of the contract were guided by nothing."""

    contribution = KIND


class TestClipContract(Contract):
    """With CLIP."""

    @pytest.fixture(autouse=True)
    def _saved(self, clip: Path) -> None:
        self.options = {"model": str(clip), "device": "cpu", "concepts": "inappropriate/*"}


class TestSiglipContract(Contract):
    """With SigLIP."""

    @pytest.fixture(autouse=True)
    def _saved(self, siglip: Path) -> None:
        self.options = {
            "model": str(siglip),
            "device": "cpu",
            "concepts": "inappropriate/hate, inappropriate/sexual",
        }


def test_clip_scores_each_concept_by_softmax_against_the_neutral_texts_alone(clip: Path) -> None:
    images, texts = pictures(), [text for (text,) in TEXTS.values()]
    found = [list(each.values()) for each in scores(clip, images)]
    logits = np.exp(clip_logits(clip, images, [*texts, *NEUTRAL]))
    wanted = logits[:, :2] / (logits[:, :2] + logits[:, 2:].sum(1, keepdims=True))
    assert np.ptp(wanted, axis=0).min() > 0.02, "the pictures must differ for this test to say something"
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_siglip_scores_each_concept_by_sigmoid(siglip: Path) -> None:
    images, texts = pictures(), [text for (text,) in TEXTS.values()]
    found = [list(each.values()) for each in scores(siglip, images)]
    wanted = 1 / (1 + np.exp(-siglip_logits(siglip, images, texts)))
    assert np.ptp(wanted, axis=0).min() > 0.02
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_siglip_reads_texts_in_lower_case(siglip: Path) -> None:
    shouted = {name: tuple(text.upper() for text in texts) for name, texts in TEXTS.items()}
    assert scores(siglip, pictures(), shouted) == scores(siglip, pictures())


def test_other_neutral_texts_can_be_given(clip: Path) -> None:
    images = pictures()
    found = [each["own/theft"] for each in scores(clip, images, neutral="a cat ; a dog;")]
    logits = np.exp(clip_logits(clip, images, ["theft", "a cat", "a dog"]))
    np.testing.assert_allclose(found, logits[:, 0] / logits.sum(1), atol=2e-5)


def test_a_concept_in_parts_has_the_score_of_its_best_part(clip: Path) -> None:
    images = pictures()
    together = scores(clip, images, {"one": ("blood", "theft", "a sword")})
    apart = scores(clip, images, {"a": ("blood",), "b": ("theft",), "c": ("a sword",)})
    assert [each["one"] for each in together] == pytest.approx([max(each.values()) for each in apart])


def test_a_score_does_not_depend_on_what_else_is_looked_for(clip: Path) -> None:
    both, one = scores(clip, pictures()), scores(clip, pictures(), {"own/theft": ("theft",)})
    assert [each["own/theft"] for each in both] == [each["own/theft"] for each in one]


def test_each_picture_is_searched_for_its_own_concepts(clip: Path) -> None:
    images = pictures(2)
    about = [*contexts(1, {"a": ("blood",)}), *contexts(1, {"b": ("theft",)})]
    verdicts = make(clip).review(images, about)
    assert [set(verdict.scores) for verdict in verdicts] == [{"a"}, {"b"}]
    assert verdicts[1].scores["b"] == pytest.approx(
        scores(clip, images[1:], {"b": ("theft",)})[0]["b"], abs=1e-5
    )


def test_a_text_longer_than_the_window_is_split_and_every_term_is_searched(clip: Path) -> None:
    terms = [
        "harassment at school",
        "violence in the street",
        "theft of bicycles",
        "cruelty to other animals",
    ]
    images = pictures()
    whole = scores(clip, images, {"long": (", ".join(terms),)})
    parts = (", ".join(terms[:3]), terms[3])
    assert len(clip_tokenizer()(", ".join(terms))["input_ids"]) > WINDOW
    assert len(clip_tokenizer()(parts[0])["input_ids"]) <= WINDOW
    assert whole == scores(clip, images, {"long": parts})


def test_a_single_term_that_is_too_long_is_refused_and_not_cut(clip: Path) -> None:
    with pytest.raises(ConceptError, match="shorten it"):
        scores(clip, pictures(1), {"long": ("x" * 100,)})


def test_the_threshold_divides_flagged_from_not(clip: Path) -> None:
    images = pictures(12)
    highest = [max(each.values()) for each in scores(clip, images)]
    limit = float(np.median(highest))
    verdicts = make(clip, threshold=limit).review(images, contexts(12, TEXTS))
    assert [v.flagged for v in verdicts] == [score >= limit for score in highest]
    assert {v.flagged for v in verdicts} == {True, False}
    assert all(v.thresholds == dict.fromkeys(TEXTS, limit) and bool(v.reason) == v.flagged for v in verdicts)


def test_only_the_third_of_three_is_flagged_whatever_the_batch_size(siglip: Path) -> None:
    one = {"own/theft": ("theft",)}
    images = sorted(pictures(3), key=lambda image: scores(siglip, [image], one)[0]["own/theft"])
    found = [each["own/theft"] for each in scores(siglip, images, one)]
    for size in (1, 2, 3):
        made = make(siglip, batch_size=size, threshold=(found[1] + found[2]) / 2)
        assert [v.flagged for v in made.review(images, contexts(3, one))] == [False, False, True]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_the_size_score_almost_the_same(clip: Path, dtype: str) -> None:
    for one, other in zip(scores(clip, pictures()), scores(clip, pictures(), dtype=dtype), strict=True):
        assert one == pytest.approx(other, abs=0.1)
        assert one != other


def test_named_concepts_replace_those_that_guided(clip: Path) -> None:
    found = scores(clip, pictures(1), concepts="inappropriate/hate, inappropriate/violence")
    assert list(found[0]) == ["inappropriate/hate", "inappropriate/violence"]
    texts = {"inappropriate/hate": ("an image showing hate",)}
    assert found[0]["inappropriate/hate"] == scores(clip, pictures(1), texts)[0]["inappropriate/hate"]


def test_without_any_concept_it_raises(clip: Path) -> None:
    with pytest.raises(ValueError, match="there is nothing to look for"):
        make(clip).review(pictures(1), contexts(1))


def test_an_unknown_concept_is_an_error_before_any_picture(clip: Path) -> None:
    with pytest.raises(ConceptError, match="hat"):
        make(clip, concepts="inappropriate/hat")


def test_neutral_texts_for_siglip_are_refused_since_they_would_do_nothing(siglip: Path) -> None:
    with pytest.raises(ConfigurationError, match="leave the option 'neutral' out"):
        make(siglip, neutral="a cat")


@pytest.mark.parametrize("neutral", [" ; ", "x" * 100])
def test_neutral_texts_that_cannot_be_used_are_refused(clip: Path, neutral: str) -> None:
    with pytest.raises(ConfigurationError, match="neutral"):
        make(clip, neutral=neutral)


def test_the_hash_is_that_of_the_weights(clip: Path) -> None:
    (verdict,) = make(clip).review(pictures(1), contexts(1, TEXTS))
    assert verdict.weights == sha256((clip / "model.safetensors").read_bytes()).hexdigest()[:16]


def test_a_model_without_texts_is_refused(tmp_path: Path) -> None:
    clip_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a ViTModel, which does not compare pictures with texts"):
        make(saved(ViTModel(ViTConfig(**VISION)), tmp_path))


def test_a_naflex_model_is_refused(tmp_path: Path) -> None:
    text = {**SIZE, "vocab_size": 128, "max_position_embeddings": 64}
    vision = {**SIZE, "num_patches": 16, "patch_size": 8}
    gemma_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="NaFlex"):
        make(saved(Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)), tmp_path))
