"""ShieldGemma 2 and LlavaGuard, on models of the real classes with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detectors import (
    LLAVA_WORDS,
    SIDE,
    SIZE,
    contexts,
    gemma_tokenizer,
    llava,
    pictures,
    spread,
    square_pixels,
)
from transformers import (
    Gemma3ImageProcessorPil,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
    ShieldGemma2Processor,
)

from sldcore.catalogue import checked_options
from sldcore.errors import ConfigurationError, ModelError
from sldcore.filters.vlm_judge import KIND
from sldcore.testing import PostFilterContract

CONCEPTS = {"a/blood": ("an image showing blood",), "b/theft": ("theft",)}
BEGIN, END, SOFT = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
SOFT_TOKENS = 4
IMAGES = 12
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ c['text'] }} Yes or No?{% endif %}{% endfor %}{% endfor %}"
)


def tokenizer() -> Any:
    names = {"boi_token": BEGIN, "eoi_token": END, "image_token": SOFT}
    return gemma_tokenizer(BEGIN, END, SOFT, "Yes", "No", "\n", extra_special_tokens=names)


def shieldgemma(folder: Path, **ids: int) -> Path:
    """The folder, with a ShieldGemma 2 in miniature; ``ids`` take the place of those of its answers."""
    words = tokenizer()
    known = words.get_vocab()
    text = {
        **SIZE,
        "model_type": "gemma3_text",
        "vocab_size": len(words),
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    vision = {
        **SIZE,
        "model_type": "siglip_vision_model",
        "image_size": SIDE,
        "patch_size": 8,
        "vision_use_head": False,
    }
    config = ShieldGemma2Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=SOFT_TOKENS,
        boi_token_index=known[BEGIN],
        eoi_token_index=known[END],
        image_token_index=known[SOFT],
        **({"yes_token_index": known["Yes"], "no_token_index": known["No"]} | ids),
    )
    spread(ShieldGemma2ForImageClassification(config)).save_pretrained(folder)
    pixels = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_convert_rgb=True)
    ShieldGemma2Processor(
        pixels, words, chat_template=TEMPLATE, image_seq_length=SOFT_TOKENS
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shield(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shieldgemma(tmp_path_factory.mktemp("shieldgemma"))


def make(folder: Path, **options: Any) -> Any:
    return KIND.create(checked_options(KIND, {"model": str(folder), "device": "cpu", **options}))


@torch.no_grad()
def chance_of_yes(folder: Path, images: list[Image.Image], policy: str) -> np.ndarray:
    """P(Yes) against P(No) after the prompt, one picture at a time, without processor and without anything of ours."""
    model, words = ShieldGemma2ForImageClassification.from_pretrained(folder).eval(), tokenizer()
    known = words.get_vocab()
    text = words(f"{policy} Yes or No?", add_special_tokens=False)["input_ids"]
    blank = words("\n\n", add_special_tokens=False)["input_ids"]
    ids = [words.bos_token_id, *blank, known[BEGIN], *[known[SOFT]] * SOFT_TOKENS, known[END], *blank, *text]
    kinds = torch.tensor([[int(each == known[SOFT]) for each in ids]])
    found = []
    for image in images:
        output = model.model(
            input_ids=torch.tensor([ids]),
            pixel_values=square_pixels([image]),
            token_type_ids=kinds,
            attention_mask=torch.ones_like(kinds),
        )
        yes, no = output.logits[0, -1, [known["Yes"], known["No"]]].double().exp().tolist()
        found.append(yes / (yes + no))
    return np.array(found)


class TestContractOfShieldGemma(PostFilterContract):
    """What every post-filter must do."""

    contribution = KIND

    @pytest.fixture(autouse=True)
    def _saved(self, shield: Path) -> None:
        self.options = {
            "model": str(shield),
            "device": "cpu",
            "concepts": "inappropriate/hate, inappropriate/sexual",
        }


def test_shieldgemma_scores_are_the_chance_of_yes_after_each_policy(shield: Path) -> None:
    images = pictures()
    verdicts = make(shield).review(images, contexts(5, CONCEPTS))
    for name, content in (("a/blood", "blood"), ("b/theft", "theft")):
        policy = f"The image shall not contain content that depicts {content}."
        wanted = chance_of_yes(shield, images, policy)
        assert np.ptp(wanted) > 0.02, "the pictures must differ for this test to say something"
        np.testing.assert_allclose([v.scores[name] for v in verdicts], wanted, atol=2e-5)


def test_shieldgemma_flags_only_the_third_of_three_whatever_the_batch_size(shield: Path) -> None:
    one = {"a/blood": ("blood",)}
    images = sorted(
        pictures(3), key=lambda image: make(shield).review([image], contexts(1, one))[0].scores["a/blood"]
    )
    scores = [v.scores["a/blood"] for v in make(shield).review(images, contexts(3, one))]
    for size in (1, 2, 3):
        made = make(shield, batch_size=size, threshold=(scores[1] + scores[2]) / 2)
        verdicts = made.review(images, contexts(3, one))
        assert [v.flagged for v in verdicts] == [False, False, True]
        assert ["a/blood" in v.reason for v in verdicts] == [False, False, True]


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (1, 60), (1600, 1200)])
def test_a_picture_of_one_colour_is_judged_the_same_in_every_size(
    shield: Path, size: tuple[int, int]
) -> None:
    images = [Image.new("RGB", each, (200, 30, 90)) for each in (size, (SIDE, SIDE))]
    one, other = make(shield).review(images, contexts(2, CONCEPTS))
    assert one.scores == pytest.approx(other.scores, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_the_size_judge_almost_the_same(shield: Path, dtype: str) -> None:
    exact, half = (
        make(shield, dtype=each).review(pictures(), contexts(5, CONCEPTS)) for each in ("float32", dtype)
    )
    for one, other in zip(exact, half, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=0.15)
        assert one.scores != other.scores


def test_a_shieldgemma_whose_tokenizer_says_something_else_for_yes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"token 20 should be 'yes' and is .*; its parts do not belong together"
    ):
        make(shieldgemma(tmp_path, yes_token_index=20))


def test_a_prompt_for_shieldgemma_is_refused_since_it_would_do_nothing(shield: Path) -> None:
    with pytest.raises(ConfigurationError, match="leave 'prompt' out"):
        make(shield, prompt="prompt.txt")


def test_without_a_chat_template_it_is_refused(tmp_path: Path) -> None:
    (shieldgemma(tmp_path) / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        make(tmp_path)


def answer(rating: str, category: str) -> str:
    return json.dumps({"rating": rating, "category": category, "rationale": f"{rating} by the look of it"})


ANSWERS = (answer("Unsafe", "O2: b/theft"), answer("Safe", "O1: a/blood"))
FIRST, SECOND, MORE = range(len(LLAVA_WORDS), len(LLAVA_WORDS) + 3)


def llavaguard(folder: Path, answers: tuple[str, str] = ANSWERS, ends: bool = True, axis: int = 0) -> Path:
    """The folder, with a Llava that gives one of two answers, each a single token, and then ends, or goes on.

    Which of the two decides the last hidden state at ``axis``.
    """
    model = llava(folder, (*answers, "more"))
    head, embedding = model.lm_head.weight.data, model.get_input_embeddings().weight.data
    head[:] = 0
    directions = torch.eye(SIZE["hidden_size"])
    head[FIRST], head[SECOND] = 20 * directions[axis], -20 * directions[axis]
    head[LLAVA_WORDS.index("</s>") if ends else MORE] = 0.01 * directions[-1]
    embedding[[FIRST, SECOND, MORE]] = (
        1e4 * directions[-1]
    )  # so large that what follows depends on nothing else
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that does not give all pictures the same answer."""
    folder = tmp_path_factory.mktemp("llavaguard")
    for axis in range(SIZE["hidden_size"] - 1):
        llavaguard(folder, axis=axis)
        if len(set(first_answers(folder, pictures(IMAGES)))) == len(ANSWERS):
            return folder
    raise LookupError("every axis gives all pictures the same answer")


@torch.no_grad()
def first_answers(folder: Path, images: list[Image.Image]) -> list[str]:
    """What the model says about each picture, through transformers' own generation and ours not at all."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from sldcore.filters.vlm_prompts import LLAVAGUARD, llavaguard_prompt

    prompt = llavaguard_prompt(LLAVAGUARD, {"a/blood": "blood", "b/theft": "theft"})
    processor, model = (
        AutoProcessor.from_pretrained(folder),
        LlavaForConditionalGeneration.from_pretrained(folder),
    )
    said = []
    for image in images:
        inputs = processor(text=f"USER: <image> {prompt} ASSISTANT:", images=image, return_tensors="pt")
        said.append(ANSWERS[int(model(**inputs).logits[0, -1].argmax()) - FIRST])
    return said


def test_llavaguard_scores_are_the_words_of_its_answers(guard: Path) -> None:
    images = pictures(IMAGES)
    said = first_answers(guard, images)
    verdicts = make(guard, style="llavaguard").review(images, contexts(IMAGES, CONCEPTS))
    unsafe = {"unsafe": 1.0, "a/blood": 0.0, "b/theft": 1.0}
    assert [v.scores for v in verdicts] == [
        unsafe if each == ANSWERS[0] else dict.fromkeys(unsafe, 0.0) for each in said
    ]
    assert [v.flagged for v in verdicts] == [each == ANSWERS[0] for each in said]
    assert all(("Unsafe by the look of it" in v.reason) == v.flagged for v in verdicts)


def test_llavaguard_answers_that_do_not_end_raise(tmp_path: Path) -> None:
    made = make(llavaguard(tmp_path, ends=False), style="llavaguard", max_new_tokens=5)
    with pytest.raises(ValueError, match="the judge's answer is not JSON"):
        made.review(pictures(1), contexts(1, CONCEPTS))


def test_one_unreadable_answer_raises_for_the_batch(guard: Path, tmp_path: Path) -> None:
    said = first_answers(guard, pictures(IMAGES))
    images = [pictures(IMAGES)[index] for index in map(said.index, ANSWERS)]
    copytree(guard, tmp_path, dirs_exist_ok=True)
    vocabulary = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(
        vocabulary.replace(json.dumps(ANSWERS[1]), '"Sure! It is safe."')
    )
    made = make(tmp_path, style="llavaguard", batch_size=2)
    assert made.review(images[:1], contexts(1, CONCEPTS))[0].flagged
    with pytest.raises(ValueError, match="Sure! It is safe"):
        made.review(images, contexts(2, CONCEPTS))


def test_what_the_folder_says_of_sampling_is_not_followed(guard: Path, tmp_path: Path) -> None:
    copytree(guard, tmp_path, dirs_exist_ok=True)
    read = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(
        json.dumps({**read, "do_sample": True, "temperature": 50.0})
    )
    expected = make(guard, style="llavaguard").review(pictures(IMAGES), contexts(IMAGES, CONCEPTS))
    assert [
        v.scores
        for v in make(tmp_path, style="llavaguard").review(pictures(IMAGES), contexts(IMAGES, CONCEPTS))
    ] == [v.scores for v in expected]
