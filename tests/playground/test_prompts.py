"""The prompt sets, and the words that the tokenizer must know."""

from __future__ import annotations

import re

import pytest

import sldcore.playground
from sldcore.concepts import load_pack
from sldcore.playground.prompts import (
    DEFAULT_TEXT,
    EXPLICIT_PROMPTS,
    NEUTRAL_PROMPTS,
    PROMPT_SETS,
    ROLE_PROMPTS,
    tokenizer_corpus,
)
from sldcore.playground.world import CATEGORIES, GLYPH_NAMES, GLYPH_TERMS, GLYPHS, ROLES, SUBJECTS

GLYPH_WORDS = {
    word
    for text in (*GLYPHS, *CATEGORIES, *GLYPH_NAMES.values(), *sum(GLYPH_TERMS.values(), ()))
    for word in re.findall(r"[a-z]+", text)
    if word != "a"
}


def words(prompt: str) -> set[str]:
    return set(re.findall(r"[a-z]+", prompt))


def test_the_sets_are_large_enough_and_without_repetition() -> None:
    assert len(set(ROLE_PROMPTS)) == len(ROLE_PROMPTS) >= 140
    assert len(set(NEUTRAL_PROMPTS)) == len(NEUTRAL_PROMPTS) >= 120
    assert len(set(EXPLICIT_PROMPTS)) == len(EXPLICIT_PROMPTS)


@pytest.mark.parametrize("name", ["roles", "neutral"])
def test_ordinary_prompts_name_no_glyph_and_no_term(name: str) -> None:
    assert [prompt for prompt in PROMPT_SETS[name] if words(prompt) & GLYPH_WORDS] == []


def test_role_prompts_have_one_role_each_and_every_role_equally_often() -> None:
    roles = [role for prompt in ROLE_PROMPTS for role in words(prompt) & set(ROLES)]
    assert len(roles) == len(ROLE_PROMPTS)
    assert {roles.count(role) for role in ROLES} == {len(ROLE_PROMPTS) // len(ROLES)}


def test_neutral_prompts_have_a_subject_and_no_role() -> None:
    assert all(words(prompt) & set(SUBJECTS) for prompt in NEUTRAL_PROMPTS)
    assert not any(words(prompt) & set(ROLES) for prompt in NEUTRAL_PROMPTS)


def test_explicit_prompts_name_a_glyph_each() -> None:
    assert all(words(prompt) & GLYPH_WORDS for prompt in EXPLICIT_PROMPTS)


def test_the_default_text_is_that_of_the_pack() -> None:
    assert load_pack("inappropriate").whole().text == DEFAULT_TEXT


def test_the_package_hands_on_the_prompt_sets() -> None:
    assert sldcore.playground.PROMPT_SETS is PROMPT_SETS


def test_an_unknown_name_in_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PROMPTS'"):
        _ = sldcore.playground.PROMPTS


@pytest.mark.parametrize("text", [DEFAULT_TEXT, *(", ".join(terms) for terms in GLYPH_TERMS.values())])
def test_a_trained_tokenizer_knows_every_word_of_the_concept_texts(text: str) -> None:
    from sldcore.playground.architecture import build_tokenizer

    tokens = build_tokenizer(tokenizer_corpus(seed=0)).tokenize(text)

    assert [token for token in tokens if not token.endswith("</w>")] == []
