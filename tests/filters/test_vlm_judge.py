"""vlm-judge, on a Llava of the real class with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_detectors import LLAVA_WORDS, SIDE, VISION, clip_pixels, contexts, llava, pictures
from transformers import LlavaForConditionalGeneration

from sldcore.catalogue import checked_options
from sldcore.errors import ConfigurationError, ModelError
from sldcore.filters.vlm_judge import KIND
from sldcore.testing import PostFilterContract

WORDS = ("Yes", "No", "\u2581yes", "blood", "Is")
YES, NO, SPACED_YES, BLOOD, OTHER = range(len(LLAVA_WORDS), len(LLAVA_WORDS) + len(WORDS))
CONCEPTS = {"a/blood": ("blood",), "b/is": ("Is Is",)}


def judge(folder: Path, answers: bool = True, words: tuple[str, ...] = WORDS) -> Path:
    """The folder, with a Llava whose likeliest words are yes and no, or another one."""
    model = llava(folder, words)
    head = model.lm_head.weight.data
    kept = [YES, NO, SPACED_YES] if answers else [OTHER]
    head[[index for index in range(len(head)) if index not in kept]] = 0
    # Opposite rows: one of them is above zero, and so above all other words.
    head[NO if answers else 0] = -head[kept[0]]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judge(tmp_path_factory.mktemp("llava"))


def make(folder: Path, **options: Any) -> Any:
    return KIND.create(checked_options(KIND, {"model": str(folder), "device": "cpu", **options}))


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prompt of which the miniature knows the words."""
    path = tmp_path_factory.mktemp("prompt") / "prompt.txt"
    path.write_text("Is {policy}")
    return str(path)


class TestContract(PostFilterContract):
    """What every post-filter must do."""

    contribution = KIND

    @pytest.fixture(autouse=True)
    def _saved(self, folder: Path) -> None:
        self.options = {"model": str(folder), "device": "cpu", "concepts": "inappropriate/hate"}


@torch.no_grad()
def test_the_score_is_that_of_the_yes_words_among_yes_and_no(folder: Path, prompt: str) -> None:
    """Token ids and picture tokens are written out here; nothing of ours and no processor takes part."""
    images = pictures(5, (40, 40))
    verdicts = make(folder, prompt=prompt).review(images, contexts(5, {"a/blood": ("blood",)}))
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    patches = (SIDE // VISION["patch_size"]) ** 2
    user, assistant = (LLAVA_WORDS.index(word) for word in ("USER:", "ASSISTANT:"))
    ids = torch.tensor([[user, *[2] * patches, OTHER, BLOOD, assistant]] * 5)
    logits = model(input_ids=ids, pixel_values=clip_pixels(images)).logits[:, -1].double().numpy()
    yes, no = np.exp(logits[:, [YES, SPACED_YES]]).sum(1), np.exp(logits[:, NO])
    found = [verdict.scores["a/blood"] for verdict in verdicts]
    assert np.ptp(found) > 1e-3, "the pictures must differ for this test to say something"
    np.testing.assert_allclose(found, yes / (yes + no), atol=1e-5)


def test_every_concept_is_asked_for_by_itself(folder: Path, prompt: str) -> None:
    images, made = pictures(3), make(folder, prompt=prompt)
    both = made.review(images, contexts(3, CONCEPTS))
    for name, texts in CONCEPTS.items():
        alone = made.review(images, contexts(3, {name: texts}))
        assert [v.scores[name] for v in both] == pytest.approx([v.scores[name] for v in alone], abs=1e-5)


def test_pictures_of_several_policies_and_sizes_keep_their_order(folder: Path, prompt: str) -> None:
    images = [*pictures(2), *pictures(4, (64, 32))[2:]]
    mixed = [contexts(1, {name: CONCEPTS[name]})[0] for name in ("a/blood", "b/is", "a/blood", "b/is")]
    made = make(folder, prompt=prompt, batch_size=2)
    together = made.review(images, mixed)
    for verdict, image, context in zip(together, images, mixed, strict=True):
        (alone,) = made.review([image], [context])
        assert alone.scores == pytest.approx(verdict.scores, abs=1e-5)


def test_an_answer_that_begins_with_another_word_raises(tmp_path: Path) -> None:
    judge(tmp_path, answers=False)
    with pytest.raises(ValueError, match="asked for yes or no, and its answer begins with"):
        for image in pictures(6):
            make(tmp_path).review([image], contexts(1, CONCEPTS))


def test_without_concepts_it_raises(folder: Path) -> None:
    with pytest.raises(ValueError, match="nothing to look for"):
        make(folder).review(pictures(1), contexts(1))


def test_a_vocabulary_without_yes_is_refused(tmp_path: Path) -> None:
    words = tuple(word.replace("Yes", "Oui").replace("yes", "oui") for word in WORDS)
    with pytest.raises(ModelError, match="cannot be asked yes or no"):
        make(judge(tmp_path, words=words))


def test_a_prompt_without_a_place_for_the_concepts_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Is this fine?")
    with pytest.raises(ConfigurationError, match=r"lacks \{policy\}"):
        make(folder, prompt=str(tmp_path / "prompt.txt"))


def test_another_model_is_no_shieldgemma(folder: Path) -> None:
    with pytest.raises(ModelError):
        make(folder, style="shieldgemma")


def test_what_a_llavaguard_says_at_random_raises(folder: Path) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        make(folder, style="llavaguard", max_new_tokens=3).review(pictures(1), contexts(1, CONCEPTS))
