"""The packs that come with sldcore: whole, sourced, honest about limits, and short enough for a text encoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sldcore.concepts import load_pack, pack_ids, resolve
from sldcore.documents import read_mapping
from sldcore.packs import ConceptPack, pack_schema
from sldcore.policy import SafetyPolicy
from sldcore.splitting import split_to_window

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "packs.md").read_text(encoding="utf-8")
WINDOW = 77
SEVEN = ("hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal-activity")
TRANSLATED = ("ar", "de", "es", "fr", "it", "zh")
ISSUED = {
    "inappropriate", "nudity", "violence", "weapons", "substances", "copyrighted-style", "privacy",
}  # fmt: skip
SCRIPTS = {"zh": r"[\u4e00-\u9fff]", "ar": r"[\u0600-\u06ff]"}

every_pack = pytest.mark.parametrize("name", pack_ids())
every_translation = pytest.mark.parametrize("language", TRANSLATED)


@pytest.fixture(scope="module")
def count_tokens() -> Callable[[str], int]:
    """The playground's tokenizer: CLIP's kind with 750 tokens, so that words of other worlds take more than in CLIP."""
    from transformers import CLIPTokenizer

    tokenizer: Any = CLIPTokenizer.from_pretrained(ROOT / "sldcore" / "playground" / "model" / "tokenizer")
    return lambda text: len(tokenizer(text, truncation=False, verbose=False).input_ids)


def most_tokens(text: str) -> int:
    """No byte-level tokenizer makes more tokens than there are bytes; begin and end tokens included."""
    return len(text.replace(" ", "").encode()) + 2


def documented() -> dict[str, list[str]]:
    """The cells of each row of the documentation's table of packs, by the pack's id."""
    section = DOCS.split("## The packs")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_packs_that_were_asked_for_are_there() -> None:
    assert set(pack_ids()) >= ISSUED


@every_pack
def test_a_pack_s_id_is_its_file_s_name(name: str) -> None:
    assert load_pack(name).id == name


@every_pack
def test_a_pack_s_file_is_what_the_schema_says(name: str) -> None:
    jsonschema.validate(read_mapping(ROOT / "concepts" / f"{name}.yaml"), pack_schema())


@every_pack
def test_a_pack_says_where_it_comes_from_and_under_which_licence(name: str) -> None:
    pack = load_pack(name)
    assert pack.sources
    assert pack.licence == "Apache-2.0"


@every_pack
def test_a_pack_says_what_it_is_for_and_what_it_cannot_do(name: str) -> None:
    pack = load_pack(name)
    assert len(pack.setting.split()) >= 12
    assert len(pack.limits.split()) >= 25


@every_pack
def test_every_concept_is_described(name: str) -> None:
    assert [concept.id for concept in load_pack(name).concepts if not concept.description] == []


@every_pack
def test_a_pack_that_is_not_the_toy_s_says_that_it_steers_and_who_should_review_it(name: str) -> None:
    limits = load_pack(name).limits
    exempt = ("playground", "inappropriate")  # the reference, and a toy
    assert name in exempt or re.search(r"Steers, and does not detect|does not detect", limits)
    assert name in exempt or re.search(r"Reviewers: |should review", limits)


@every_pack
def test_every_term_fits_the_window_of_any_byte_level_tokenizer(name: str) -> None:
    pack = load_pack(name)
    terms = [*pack.whole().terms, *(term for concept in pack.concepts for term in concept.terms)]
    assert [term for term in terms if most_tokens(f"{pack.prefix} {term}") > WINDOW] == []


@every_pack
def test_every_concept_and_the_whole_text_split_into_parts_that_fit_the_window(
    name: str, count_tokens: Callable[[str], int]
) -> None:
    pack = load_pack(name)
    for concept in (pack.whole(), *(pack.concept(each.id) for each in pack.concepts)):
        parts = split_to_window(concept, count_tokens, WINDOW)
        assert [part for part in parts if count_tokens(part) > WINDOW] == []
        assert all(part.startswith(pack.prefix) for part in parts)


@every_pack
def test_a_concept_used_alone_is_few_rows(name: str, count_tokens: Callable[[str], int]) -> None:
    pack = load_pack(name)
    rows = {
        each.id: len(split_to_window(pack.concept(each.id), count_tokens, WINDOW)) for each in pack.concepts
    }
    assert {concept: number for concept, number in rows.items() if number > 2} == {}


def test_no_two_packs_have_a_concept_of_the_same_text_in_the_same_language() -> None:
    seen: dict[tuple[str, str], str] = {}
    twice = []
    for pack in map(load_pack, pack_ids()):
        for language in pack.languages:
            for concept in pack.concepts:
                name = f"{pack.id}/{concept.id}"
                first = seen.setdefault((language, concept.text.casefold()), name)
                twice += [(first, name)] if first != name else []
    assert twice == []


@every_translation
def test_a_translation_has_the_seven_categories_in_order(language: str) -> None:
    pack = load_pack(f"inappropriate-{language}")
    assert tuple(concept.id for concept in pack.concepts) == SEVEN
    assert pack.languages == (language,)


@every_translation
def test_a_translation_has_a_term_for_every_term_of_the_original(language: str) -> None:
    original, translated = load_pack("inappropriate"), load_pack(f"inappropriate-{language}")
    assert len(translated.whole().terms) == len(original.whole().terms) == 20
    assert [len(concept.terms) for concept in translated.concepts] == [
        len(concept.terms) for concept in original.concepts
    ]


@every_translation
def test_a_translation_s_whole_text_names_the_terms_of_its_categories(language: str) -> None:
    original, translated = load_pack("inappropriate"), load_pack(f"inappropriate-{language}")
    word_for = dict(zip(terms_of(original), terms_of(translated), strict=True))
    assert translated.whole().terms == tuple(word_for[term] for term in original.whole().terms)


@every_translation
def test_a_translation_warns_of_clip_s_english_bias(language: str) -> None:
    limits = load_pack(f"inappropriate-{language}").limits
    assert "mostly English captions" in limits
    assert "multilingual text encoder" in limits


@pytest.mark.parametrize("language", SCRIPTS)
def test_a_translation_is_written_in_its_own_script(language: str) -> None:
    terms = terms_of(load_pack(f"inappropriate-{language}"))
    assert [term for term in terms if not re.search(SCRIPTS[language], term)] == []


def test_culture_is_told_by_the_packs_of_norms_and_by_no_other() -> None:
    told = {name for name in pack_ids() if load_pack(name).culture}
    assert told == {
        "banned-symbols", "dietary-norms", "indigenous-cultural-protocols", "modesty-norms",
        "religious-depiction-norms",
    }  # fmt: skip


def test_the_documentation_lists_every_pack_with_its_languages() -> None:
    listed = {name: row[-1].split(", ") for name, row in documented().items()}
    assert listed == {name: list(load_pack(name).languages) for name in pack_ids()}


@pytest.mark.parametrize(
    "name", [name for name in pack_ids() if not name.startswith("inappropriate-") and name != "playground"]
)
def test_the_documentation_lists_every_concept(name: str) -> None:
    assert documented()[name][1].split(", ") == [concept.id for concept in load_pack(name).concepts]


def test_the_policy_in_the_documentation_uses_what_it_says() -> None:
    (policy,) = [block for block in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL) if "guidance:" in block]
    used = resolve(SafetyPolicy.parse(policy).concepts)
    ids = [each.concept.id for each in used]
    assert ids[:-1] == [
        "weapons",
        *(f"violence/{concept.id}" for concept in load_pack("violence").concepts),
        "substances/drugs",
        "substances/tobacco",
        "substances/gambling",
        "dietary-norms/pork",
    ]
    strengths = {each.concept.id: each.concept.strength for each in used}
    assert (strengths["weapons"], strengths["substances/drugs"]) == (1.0, 1.5)


def test_medical_education_steers_away_from_nothing_that_it_teaches() -> None:
    text = load_pack("medical-education").whole().text
    assert not {"nudity", "naked", "blood", "wounds", "drugs"} & set(re.findall(r"\w+", text))


def terms_of(pack: ConceptPack) -> list[str]:
    return [term for concept in pack.concepts for term in concept.terms]
