from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from sldcore.concepts import ConceptPack, load_pack, pack_ids, pack_schema, resolve, split_to_window
from sldcore.documents import to_yaml
from sldcore.errors import ConceptError
from sldcore.playground.world import CATEGORIES, GLYPH_TERMS
from sldcore.policy import ConceptUse
from sldcore.types import Concept

REFERENCE = (
    "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, "
    "blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty"
)
SEVEN = ("hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal-activity")
PACKS = Path(__file__).parent.parent / "concepts"


def count_words(text: str) -> int:
    """A tokenizer of words and separators, with a begin and an end token."""
    return len(text.replace(",", " , ").replace(";", " ; ").split()) + 2


def write_pack(folder: Path, **changes: object) -> Path:
    content = {
        "id": "mine",
        "version": "1",
        "title": "Mine",
        "licence": "CC0-1.0",
        "concepts": [{"id": "a", "terms": ["x", "y z"]}],
        **changes,
    }
    path = folder / "mine.yaml"
    path.write_text(to_yaml({key: value for key, value in content.items() if value is not None}))
    return path


def test_the_default_concept_is_the_reference_text_word_for_word() -> None:
    (concept,) = resolve([ConceptUse(use="inappropriate")])
    assert concept.text == REFERENCE
    assert concept.id == "inappropriate"


def test_the_pack_s_text_stands_without_its_prefix() -> None:
    pack = load_pack("inappropriate")
    assert f"{pack.prefix} {pack.text}" == REFERENCE


def test_the_default_concept_has_the_twenty_terms_in_order() -> None:
    (concept,) = resolve([ConceptUse(use="inappropriate")])
    assert len(concept.terms) == 20
    assert f"{concept.prefix} {', '.join(concept.terms)}" == REFERENCE


def test_the_seven_categories_hold_each_reference_term_once() -> None:
    concepts = resolve([ConceptUse(use="inappropriate/*")])
    assert tuple(concept.id for concept in concepts) == tuple(f"inappropriate/{name}" for name in SEVEN)
    terms = [term for concept in concepts for term in concept.terms]
    reference = REFERENCE.removeprefix("an image showing ").split(", ")
    assert sorted(terms) == sorted([*reference, "self-harm", "shocking"])


def test_a_concept_s_text_is_its_prefix_and_its_terms() -> None:
    (concept,) = resolve([ConceptUse(use="inappropriate/harassment")])
    assert concept.text == "an image showing harassment, humiliation"


def test_the_playground_pack_says_what_its_world_says() -> None:
    concepts = resolve([ConceptUse(use="playground/*")])
    said = {concept.id.removeprefix("playground/"): concept.terms for concept in concepts}
    assert said == {category: GLYPH_TERMS[glyph] for category, glyph in CATEGORIES.items()}


@pytest.mark.parametrize("name", ["inappropriate", "playground"])
def test_a_shipped_pack_says_where_it_comes_from_and_what_it_cannot_do(name: str) -> None:
    pack = load_pack(name)
    assert pack.id == name
    assert all((pack.setting, pack.sources, pack.licence, pack.limits))


def test_every_pack_of_the_repository_is_available() -> None:
    assert pack_ids() == tuple(sorted(path.stem for path in PACKS.glob("*.yaml")))


def test_the_schema_file_is_current() -> None:
    current = json.loads((PACKS / "schema.json").read_text(encoding="utf-8"))
    assert current == pack_schema(), "run `make schema`"


@pytest.mark.parametrize("path", sorted(PACKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pack_of_the_repository_fits_the_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), pack_schema())


def test_a_pack_of_one_s_own_is_read_by_its_path(tmp_path: Path) -> None:
    pack = load_pack(write_pack(tmp_path, prefix="a picture of"))
    assert pack.concept("a") == Concept("mine/a", "a picture of x, y z", "a picture of", ("x", "y z"))


def test_a_pack_without_a_text_of_its_own_is_its_concepts_joined(tmp_path: Path) -> None:
    pack = load_pack(
        write_pack(tmp_path, concepts=[{"id": "a", "text": "x; y"}, {"id": "b", "terms": ["z"]}])
    )
    assert pack.whole().text == "x; y, z"
    assert pack.whole().terms == ("x", "y", "z")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"licence": None}, r"mine\.yaml: licence: Field required"),
        ({"concepts": []}, r"concepts"),
        ({"concepts": [{"id": "a"}]}, r"concepts\.0: concept 'a' has an empty text"),
        ({"concepts": [{"id": "a", "terms": ["x", ""]}]}, r"empty text or term"),
        (
            {"concepts": [{"id": "a", "term": ["x"]}]},
            r"concepts\.0: unknown key 'term'; did you mean 'terms'",
        ),
        ({"concepts": [{"id": "a", "terms": ["x"], "text": "x, y"}]}, r"must make up its text"),
        ({"concepts": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}, r"concept ids given twice: a"),
        ({"id": "No Id"}, r"id: "),
        ({"prefx": "a"}, r"unknown key 'prefx'; did you mean 'prefix'"),
        ({"concepts": [{"id": "a", "text": "x", "weight": -1}]}, r"concepts\.0\.weight"),
    ],
)
def test_a_malformed_pack_is_refused_with_the_place(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConceptError, match=complaint):
        load_pack(write_pack(tmp_path, **changes))


def test_an_unknown_pack_names_the_nearest_and_all() -> None:
    with pytest.raises(
        ConceptError, match=r"'inapropriate'; did you mean 'inappropriate'\? \(available: inappr"
    ):
        resolve([ConceptUse(use="inapropriate")])


def test_an_unknown_concept_names_the_nearest_and_all_of_its_pack() -> None:
    with pytest.raises(
        ConceptError, match=r"no concept 'violense'; did you mean 'violence'\? \(available: .*hate"
    ):
        resolve([ConceptUse(use="inappropriate/violense")])


def test_a_missing_pack_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match=r"cannot read .*absent\.yaml"):
        load_pack(tmp_path / "absent.yaml")


def test_concepts_are_resolved_in_the_policy_s_order() -> None:
    uses = [
        ConceptUse(use="inappropriate/sexual"),
        ConceptUse(text="gore"),
        ConceptUse(use="inappropriate/hate"),
    ]
    texts = [concept.text for concept in resolve(uses)]
    assert texts == ["an image showing sexual, nudity", "gore", "an image showing hate"]


def test_the_same_text_twice_is_one_concept() -> None:
    concepts = resolve([ConceptUse(use="inappropriate/hate"), ConceptUse(use="inappropriate/*")])
    assert [concept.id for concept in concepts] == [f"inappropriate/{name}" for name in SEVEN]


def test_a_use_s_weight_multiplies_the_pack_s(tmp_path: Path) -> None:
    pack = load_pack(write_pack(tmp_path, concepts=[{"id": "a", "text": "x", "weight": 0.5}]))
    assert pack.concept("a").weight == 0.5
    (hate,) = resolve([ConceptUse(use="inappropriate/hate", weight=2)])
    assert hate.weight == 2.0


def test_a_text_of_one_s_own_is_put_behind_its_prefix() -> None:
    (concept,) = resolve([ConceptUse(text="gore,\n wounds", prefix="an image showing")])
    assert concept.text == "an image showing gore, wounds"
    assert concept.prefix == "an image showing"


def test_texts_of_one_s_own_have_ids_that_tell_them_apart() -> None:
    texts = ["gore", "Gore", "gore!", "恐怖", "暴力", "gore " * 20 + "a", "gore " * 20 + "b"]
    ids = [concept.id for concept in resolve([ConceptUse(text=text) for text in texts])]
    assert len(set(ids)) == len(texts)
    assert ids == [concept.id for text in texts for concept in resolve([ConceptUse(text=text)])]


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


def test_a_pack_is_frozen() -> None:
    pack = load_pack("inappropriate")
    assert isinstance(pack, ConceptPack)
    with pytest.raises(ValueError, match="frozen"):
        pack.id = "other"  # type: ignore[misc]
