from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sldcore.errors import ConceptError
from sldcore.splitting import split_to_window, terms_of
from sldcore.types import Concept


def count_words(text: str) -> int:
    """A tokenizer of words and separators, with a begin and an end token."""
    return len(text.replace(",", " , ").replace(";", " ; ").split()) + 2


def test_a_concept_that_fits_is_one_row_with_its_text_untouched() -> None:
    concept = Concept("a", "an image of x;  y", "an image of")
    assert split_to_window(concept, count_words, count_words(concept.text)) == (concept.text,)


def test_a_long_concept_is_split_greedily_with_the_prefix_in_front_of_each_part() -> None:
    concept = Concept("a", "an image of x, y y, z; w", "an image of")
    # begin, end, three words of prefix, and four more
    assert split_to_window(concept, count_words, 9) == ("an image of x, y y", "an image of z, w")


def test_declared_terms_are_not_split_at_their_own_commas() -> None:
    concept = Concept("a", "x, y, z, w", "", ("x, y", "z, w"))
    assert split_to_window(concept, count_words, 6) == ("x, y", "z, w")


def test_a_single_term_too_long_is_an_error_that_names_it() -> None:
    concept = Concept("pack/a", "an image of x, one two three four, y", "an image of")
    with pytest.raises(
        ConceptError, match=r"'pack/a': the term 'one two three four' takes 9 tokens.*window is 8"
    ):
        split_to_window(concept, count_words, 8)


def test_terms_that_leave_a_part_of_a_long_text_out_are_an_error() -> None:
    concept = Concept("a", "x, y, z", "", ("x", "z"))
    with pytest.raises(ConceptError, match="must make up its text"):
        split_to_window(concept, count_words, 5)


term = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4).map(" ".join)


@given(
    terms=st.lists(term, min_size=1, max_size=12),
    prefix=st.sampled_from(["", "p", "p q r"]),
    window=st.integers(3, 30),
    declared=st.booleans(),
)
def test_split_parts_fit_and_hold_every_term_once_and_in_order(
    terms: list[str], prefix: str, window: int, declared: bool
) -> None:
    body = ", ".join(terms)
    concept = Concept("a", f"{prefix} {body}".strip(), prefix, tuple(terms) if declared else ())
    assume(all(count_words(f"{prefix} {each}") <= window for each in terms))
    parts = split_to_window(concept, count_words, window)
    assert all(count_words(part) <= window for part in parts)
    assert all(part.startswith(prefix) for part in parts)
    assert [each for part in parts for each in part.removeprefix(prefix).strip().split(", ")] == terms


@given(terms=st.lists(term, min_size=2, max_size=12), window=st.integers(3, 30))
def test_splitting_uses_no_more_rows_than_it_must(terms: list[str], window: int) -> None:
    assume(all(count_words(each) <= window for each in terms))
    parts = split_to_window(Concept("a", ", ".join(terms), "", tuple(terms)), count_words, window)
    for part, following in pairwise(parts):
        assert count_words(f"{part}, {following.split(', ')[0]}") > window


@pytest.mark.parametrize(
    "text", ["憎悪、暴力、血", "仇恨\uff0c暴力\uff1b血", "كراهية، عنف؛ دم", "hate, violence; blood"]
)
def test_terms_are_found_in_scripts_with_commas_of_their_own(text: str) -> None:
    assert len(terms_of(text)) == 3
