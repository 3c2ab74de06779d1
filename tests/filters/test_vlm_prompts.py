"""What judges are asked, and how strictly their answers are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sldcore.errors import ConfigurationError
from sldcore.filters.concept_texts import content_of
from sldcore.filters.vlm_prompts import (
    LLAVAGUARD,
    NOTHING,
    YES_NO,
    ids_of_word,
    llavaguard_prompt,
    parse_assessment,
    read_template,
    shieldgemma_policy,
    yes_no_question,
)
from sldcore.types import Concept

CONCEPTS = {"a/blood": "blood", "a/theft": "theft, vandalism"}
ANSWER = '{"rating": "Unsafe", "category": "O1: a/blood", "rationale": "red"}'


def test_an_unsafe_answer_names_its_concept() -> None:
    said = parse_assessment(ANSWER, CONCEPTS)
    assert (said.unsafe, said.category, said.rationale) == (True, "a/blood", "red")


@pytest.mark.parametrize("rating", ["Safe", "Unsafe"])
def test_an_answer_may_name_no_category(rating: str) -> None:
    said = parse_assessment(json.dumps({"rating": rating, "category": NOTHING, "rationale": ""}), CONCEPTS)
    assert (said.unsafe, said.category) == (rating == "Unsafe", None)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Safe",
        "null",
        ANSWER[:-1],
        ANSWER + " and more",
        f"```json\n{ANSWER}\n```",
        f"[{ANSWER}]",
        ANSWER.replace("Unsafe", "unsafe?"),
        ANSWER.replace("Unsafe", "safe"),
        ANSWER.replace("O1", "O2"),
        ANSWER.replace("O1: ", ""),
        ANSWER.replace('"red"', "1"),
        ANSWER.replace("rationale", "reason"),
        ANSWER.replace('"category": "O1: a/blood", ', ""),
        ANSWER.replace('"category": "O1: a/blood"', '"category": ["O1: a/blood"]'),
        ANSWER.replace('"rating": "Unsafe"', '"rating": ["Unsafe"]'),
        ANSWER.replace('{"rating": "Unsafe"', '{"rating": "Unsafe", "rating": "Safe"'),
        ANSWER.replace('{"rating"', '{"score": 1, "rating"'),
        "[" * 100_000,
    ],
    ids=range(19),
)
def test_an_answer_that_is_not_as_asked_raises(answer: str) -> None:
    with pytest.raises(ValueError, match="the judge's"):
        parse_assessment(answer, CONCEPTS)


@given(st.text() | st.text(alphabet=ANSWER, max_size=80))
def test_no_text_at_random_is_an_assessment(answer: str) -> None:
    with pytest.raises(ValueError, match="the judge's"):
        parse_assessment(answer, CONCEPTS)


def test_the_llavaguard_prompt_offers_exactly_the_categories_that_are_read() -> None:
    prompt = llavaguard_prompt(LLAVAGUARD, CONCEPTS)
    (line,) = (line for line in prompt.splitlines() if '"category": str<' in line)
    offered = line.split("str<")[1].split(">")[0].split("|")
    for name in offered:
        parse_assessment(f'{{"rating": "Safe", "category": {name}, "rationale": ""}}', CONCEPTS)
    assert offered == ['"O1: a/blood"', '"O2: a/theft"', f'"{NOTHING}"']
    assert "O2: a/theft:\nShould not:\n- Contain theft, vandalism." in prompt


def test_every_prompt_says_what_to_look_for() -> None:
    assert yes_no_question(YES_NO, "theft, vandalism").count("must not show theft, vandalism.") == 1
    assert shieldgemma_policy("blood") == "The image shall not contain content that depicts blood."


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        ([Concept("a", "an image showing hate, harassment", "an image showing")], "hate, harassment"),
        ([Concept("a", "an image showing hate"), Concept("a", "An image showing theft")], "hate, theft"),
        ([Concept("a", "a photo of a sword")], "a sword"),
        ([Concept("a", "imagery of war")], "imagery of war"),
        ([Concept("a", "two\n lines")], "two lines"),
        ([Concept("a", "an image showing ")], "an image showing"),
    ],
)
def test_content_is_a_concept_without_its_opening(parts: list[Concept], content: str) -> None:
    assert content_of(tuple(parts)) == content


def test_a_prompt_from_a_file_takes_the_place_of_the_default(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Is {policy} here?\n")
    assert read_template(str(tmp_path / "prompt.txt"), ["policy"], YES_NO) == "Is {policy} here?"
    assert read_template("", ["policy"], YES_NO) == YES_NO


def test_a_prompt_that_does_not_ask_for_the_concepts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Is {policy} here?")
    with pytest.raises(ConfigurationError, match=r"lacks \{categories\}"):
        read_template(str(tmp_path / "prompt.txt"), ["policy", "categories"], LLAVAGUARD)


def test_a_prompt_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_template(str(tmp_path / "none.txt"), ["policy"], YES_NO)


def test_words_are_found_in_any_case_and_after_a_space_and_never_as_parts() -> None:
    tokens = ["Yes", "\u2581yes", "\u0120YES", " yes", "yes!", "yesterday", "", "No", "\u2581Not", "no"]
    assert ids_of_word(tokens, "yes") == [0, 1, 2, 3]
    assert ids_of_word(tokens, "no") == [7, 9]
