from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sldcore import builtin
from sldcore.catalogue import Catalogue, Entry, Provider, using
from sldcore.concepts import ConceptPack, UsedConcept, load_pack, pack_ids, pack_schema
from sldcore.concepts import resolve as resolve_uses
from sldcore.contributions import ConceptProvider, Contribution
from sldcore.documents import to_yaml
from sldcore.errors import ConceptError, ConfigurationError, PluginError
from sldcore.playground.world import CATEGORIES, GLYPH_TERMS
from sldcore.policy import ConceptUse, Window
from sldcore.splitting import terms_of
from sldcore.types import Concept

REFERENCE = (
    "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, "
    "blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty"
)
SEVEN = ("hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal-activity")
PACKS = Path(__file__).parent.parent / "concepts"


@pytest.fixture(autouse=True)
def core_alone() -> Iterator[None]:
    """The core's packs, whatever plugins are installed."""
    with using(Catalogue(builtin.entries())):
        yield


def used(*uses: Any) -> tuple[UsedConcept, ...]:
    """What a policy resolves to, with its uses as YAML has them."""
    return resolve_uses([ConceptUse.model_validate(use) for use in uses])


def resolve(*uses: Any) -> tuple[Concept, ...]:
    return tuple(each.concept for each in used(*uses))


def ids(*uses: Any) -> list[str]:
    return [concept.id for concept in resolve(*uses)]


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


def packs_of(folder: Path, **packs: dict[str, str]) -> Callable[[str], ConceptPack]:
    """Packs by name, each of concepts by name."""

    def read(name: str) -> ConceptPack:
        concepts = [{"id": own, "text": text} for own, text in packs[name].items()]
        return load_pack(write_pack(folder, id=name, concepts=concepts))

    return read


def test_the_default_concept_is_the_reference_text_word_for_word() -> None:
    (concept,) = resolve("inappropriate")
    assert concept.text == REFERENCE
    assert concept.id == "inappropriate"


def test_the_pack_s_text_stands_without_its_prefix() -> None:
    pack = load_pack("inappropriate")
    assert f"{pack.prefix} {pack.text}" == REFERENCE


def test_the_default_concept_has_the_twenty_terms_in_order() -> None:
    (concept,) = resolve("inappropriate")
    assert len(concept.terms) == 20
    assert f"{concept.prefix} {', '.join(concept.terms)}" == REFERENCE


def test_the_seven_categories_hold_each_reference_term_once() -> None:
    concepts = resolve("inappropriate/*")
    assert tuple(concept.id for concept in concepts) == tuple(f"inappropriate/{name}" for name in SEVEN)
    terms = [term for concept in concepts for term in concept.terms]
    reference = REFERENCE.removeprefix("an image showing ").split(", ")
    assert sorted(terms) == sorted([*reference, "self-harm", "shocking"])


def test_a_concept_s_text_is_its_prefix_and_its_terms() -> None:
    (concept,) = resolve("inappropriate/harassment")
    assert concept.text == "an image showing harassment, humiliation"


def test_the_playground_pack_says_what_its_world_says() -> None:
    concepts = resolve("playground/*")
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
        ({"concepts": [{"id": "a", "text": "x", "strength": 0}]}, r"concepts\.0\.strength"),
        ({"concepts": [{"id": "a", "text": "x", "weight": True}]}, r"expected a number, got True"),
        ({"concepts": [{"id": "a", "text": ";"}]}, r"empty text or term"),
        ({"languages": ["Deutsch!"]}, r"languages\.0"),
        ({"languages": [False]}, r"languages\.0: Input should be a valid string, got False"),
        ({"languages": []}, r"languages"),
        ({"title": " "}, r"title: is empty"),
        ({"version": 1.0}, r"version: Input should be a valid string, got 1.0"),
    ],
)
def test_a_malformed_pack_is_refused_with_the_place(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConceptError, match=complaint):
        load_pack(write_pack(tmp_path, **changes))


def test_an_unknown_pack_names_the_nearest_and_all() -> None:
    with pytest.raises(
        PluginError, match=r"'inapropriate'; did you mean 'inappropriate'\? \(available: .*weapons"
    ):
        resolve("inapropriate")


def test_an_unknown_concept_names_the_nearest_and_all_of_its_pack() -> None:
    with pytest.raises(
        ConceptError, match=r"no concept 'violense'; did you mean 'violence'\? \(available: .*hate"
    ):
        resolve("inappropriate/violense")


def test_a_missing_pack_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match=r"cannot read .*absent\.yaml"):
        load_pack(tmp_path / "absent.yaml")


def test_concepts_are_resolved_in_the_policy_s_order() -> None:
    uses = ["inappropriate/sexual", {"text": "gore"}, "inappropriate/hate"]
    texts = [concept.text for concept in resolve(*uses)]
    assert texts == ["an image showing sexual, nudity", "gore", "an image showing hate"]


def test_the_same_text_twice_is_one_concept() -> None:
    concepts = resolve("inappropriate/hate", "inappropriate/*")
    assert [concept.id for concept in concepts] == [f"inappropriate/{name}" for name in SEVEN]


def test_a_use_s_weight_multiplies_the_pack_s(tmp_path: Path) -> None:
    pack = load_pack(write_pack(tmp_path, concepts=[{"id": "a", "text": "x", "weight": 0.5}]))
    assert pack.concept("a").weight == 0.5
    (hate,) = resolve({"use": "inappropriate/hate", "weight": 2})
    assert hate.weight == 2.0


def test_a_text_of_one_s_own_is_put_behind_its_prefix() -> None:
    (concept,) = resolve({"text": "gore,\n wounds", "prefix": "an image showing"})
    assert concept.text == "an image showing gore, wounds"
    assert concept.prefix == "an image showing"


def test_texts_of_one_s_own_have_ids_that_tell_them_apart() -> None:
    texts = ["gore", "Gore", "gore!", "恐怖", "暴力", "gore " * 20 + "a", "gore " * 20 + "b"]
    together = ids(*({"text": text} for text in texts))
    assert len(set(together)) == len(texts)
    assert together == [name for text in texts for name in ids({"text": text})]


# --- lists, exclusion, strength and window --------------------------------------------------------------------


def test_a_list_of_names_shares_weight_strength_and_window() -> None:
    window = {"unit": "fraction", "stop": 0.5}
    use = {"use": ["inappropriate/hate", "playground/hate"], "weight": 2, "strength": 3, "window": window}
    found = used(use)
    assert [each.concept.id for each in found] == ["inappropriate/hate", "playground/hate"]
    assert {(each.concept.weight, each.concept.strength) for each in found} == {(2.0, 3.0)}
    assert {each.window for each in found} == {Window(unit="fraction", stop=0.5)}


def test_a_use_s_strength_multiplies_the_pack_s(tmp_path: Path) -> None:
    pack = load_pack(write_pack(tmp_path, concepts=[{"id": "a", "text": "x", "strength": 0.5}]))
    (found,) = resolve_uses([ConceptUse(use=("mine/a",), strength=3)], packs=lambda name: pack)
    assert found.concept.strength == 1.5


def test_an_exclusion_takes_a_concept_out_whatever_uses_it_and_wherever_it_stands() -> None:
    left = [f"inappropriate/{name}" for name in SEVEN if name != "sexual"]
    assert ids("!inappropriate/sexual", "inappropriate/*") == left
    assert ids({"use": ["inappropriate/*", "inappropriate/sexual"]}, "!inappropriate/sexual") == left


def test_a_whole_pack_can_be_excluded() -> None:
    assert ids("playground/*", "inappropriate/*", "!playground/*") == [f"inappropriate/{n}" for n in SEVEN]


def test_an_excluded_concept_s_text_stays_if_another_pack_has_it(tmp_path: Path) -> None:
    packs = packs_of(tmp_path, one={"a": "x", "b": "y"}, two={"c": "x"})
    uses = [ConceptUse(use=("one/*", "two/*", "!one/a"))]
    assert [each.concept.id for each in resolve_uses(uses, packs)] == ["one/b", "two/c"]


def test_taking_everything_out_is_an_error() -> None:
    with pytest.raises(ConceptError, match=r"no concept is left after !inappropriate/\*"):
        resolve("inappropriate/*", "!inappropriate/*")


def test_a_policy_that_uses_nothing_resolves_to_nothing() -> None:
    assert resolve() == ()


@pytest.mark.parametrize(
    ("exclusion", "complaint"),
    [
        ("!inappropriate/sexul", r"no concept 'sexul'; did you mean 'sexual'"),
        ("!playground/hate", r"'!playground/hate' takes nothing out.*used: inappropriate/harassment, inapp"),
        ("!inapropriate/*", r"'inapropriate'; did you mean 'inappropriate'"),
    ],
)
def test_an_exclusion_that_takes_nothing_out_is_an_error(exclusion: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        resolve("inappropriate/*", exclusion)


def test_a_concept_cannot_be_taken_out_of_a_pack_s_whole_text() -> None:
    with pytest.raises(
        ConceptError, match=r"it uses the text of 'inappropriate' as a whole, 'inappropriate/\*'"
    ):
        resolve("inappropriate", "!inappropriate/sexual")


@pytest.mark.parametrize("named_first", [True, False])
def test_a_named_concept_beats_the_same_one_of_a_whole_pack(named_first: bool) -> None:
    uses: list[Any] = [{"use": "inappropriate/sexual", "strength": 2}, "inappropriate/*"]
    found = {concept.id: concept.strength for concept in resolve(*(uses if named_first else uses[::-1]))}
    assert found == {f"inappropriate/{name}": 2.0 if name == "sexual" else 1.0 for name in SEVEN}


def test_naming_a_concept_twice_with_different_strength_is_an_error() -> None:
    with pytest.raises(ConceptError, match=r"'inappropriate/hate' is named twice"):
        resolve("inappropriate/hate", {"use": "inappropriate/hate", "strength": 2})


def test_the_same_text_in_two_packs_is_one_concept(tmp_path: Path) -> None:
    packs = packs_of(tmp_path, one={"a": "x", "b": "y"}, two={"c": "x", "d": "z"})
    uses = [ConceptUse(use=("one/*", "two/*"))]
    assert [each.concept.id for each in resolve_uses(uses, packs)] == ["one/a", "one/b", "two/d"]


def test_a_weight_that_becomes_infinite_is_an_error(tmp_path: Path) -> None:
    pack = load_pack(write_pack(tmp_path, concepts=[{"id": "a", "text": "x", "weight": 1e308}]))
    with pytest.raises(ConceptError, match=r"'mine/a': weight or strength is too large"):
        resolve_uses([ConceptUse(use=("mine/a",), weight=1e308)], packs=lambda name: pack)


names = st.sampled_from(["inappropriate/*", *(f"inappropriate/{name}" for name in SEVEN), "playground/*"])


@given(uses=st.lists(names, min_size=1, max_size=6), out=st.sets(st.sampled_from(SEVEN), max_size=3))
def test_nothing_excluded_is_left_and_nothing_else_is_lost(uses: list[str], out: set[str]) -> None:
    def resolved(*uses: str) -> list[str]:
        with using(Catalogue(builtin.entries())):
            return ids(*uses)

    before, excluded = resolved(*uses), {f"inappropriate/{name}" for name in out}
    try:
        after = resolved(*uses, *(f"!{name}" for name in sorted(excluded)))
    except ConceptError:
        assert not excluded <= set(before) or excluded == set(before)
    else:
        assert after == [name for name in before if name not in excluded]


# --- packs of plugins -----------------------------------------------------------------------------------------


class Plugin:
    """A source with one pack."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.entry = Entry(ConceptProvider(name=name, load=load), Provider("heights", "sld-heights", "1.2"))

    def entries(self, kind: type[Contribution]) -> list[Entry]:
        return [self.entry] if kind is ConceptProvider else []

    def why_not(self, kind: type[Contribution], name: str) -> str:
        return ""

    def with_files(self, files: Sequence[Path]) -> Plugin:
        return self

    def require(self, requirements: Sequence[str]) -> None:
        return None


def test_a_plugin_s_pack_is_used_by_its_name(tmp_path: Path) -> None:
    path = write_pack(tmp_path)
    with using(Catalogue(builtin.entries(), Plugin("mine", lambda: load_pack(path)))):
        assert ids("mine/*", "inappropriate/hate") == ["mine/a", "inappropriate/hate"]


def broken() -> ConceptPack:
    raise RuntimeError("no ladder")


@pytest.mark.parametrize(
    ("load", "complaint"),
    [
        (broken, "concept pack 'mine' of sld-heights 1.2 cannot be read: no ladder"),
        (lambda: "a pack", "concept pack 'mine' of sld-heights 1.2 is broken: it gave str"),
        (lambda: load_pack("playground"), "of sld-heights 1.2 is broken: its id is 'playground'"),
    ],
)
def test_a_plugin_s_pack_that_is_none_is_an_error_that_names_the_plugin(
    load: Callable[[], Any], complaint: str
) -> None:
    with (
        using(Catalogue(builtin.entries(), Plugin("mine", load))),
        pytest.raises(ConceptError, match=complaint),
    ):
        resolve("mine/*")


def test_the_core_s_packs_are_found_without_reading_those_of_plugins() -> None:
    with using(Catalogue(builtin.entries(), Plugin("inappropriate", broken))):
        assert ids("inappropriate") == ["inappropriate"]


# --- packs as text --------------------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"), max_size=20)
words = text.filter(terms_of)
identifier = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True)
number = st.floats(0.001, 1e6) | st.integers(1, 9)
concept = st.fixed_dictionaries(
    {"id": identifier}, optional={"weight": number, "strength": number, "description": text}
)
document = st.fixed_dictionaries(
    {
        "id": identifier,
        "version": words,
        "title": words,
        "licence": words,
        "concepts": st.lists(
            st.tuples(concept, st.lists(words, min_size=1, max_size=3), st.booleans()).map(
                lambda parts: {**parts[0], **({"terms": parts[1]} if parts[2] else {"text": parts[1][0]})}
            ),
            min_size=1,
            max_size=3,
            unique_by=lambda parts: parts["id"],
        ),
    },
    optional={
        "languages": st.lists(st.sampled_from(["en", "de", "zh-Hans"]), min_size=1, max_size=2),
        "culture": text,
        "setting": text,
        "prefix": text,
        "text": text,
        "sources": st.lists(words, max_size=2),
        "limits": text,
    },
)
wrong = st.none() | st.booleans() | st.integers(-1, 1) | st.just([]) | st.just({"a": "b"}) | st.just(" ")
keys = st.sampled_from(
    ["id", "version", "title", "languages", "concepts", "weight", "terms", "text", "stray"]
)


def parsed_twice_or_refused(content: str) -> bool:
    """True if the text is a pack, and the same one after a round trip; False for one clear error."""
    try:
        pack = ConceptPack.parse(content, "mine.yaml")
    except ConfigurationError as refused:
        assert str(refused).startswith("mine.yaml: ")
        return False
    assert ConceptPack.parse(pack.dump()) == pack
    return True


@given(document)
def test_any_pack_survives_a_round_trip(document: dict[str, Any]) -> None:
    assert parsed_twice_or_refused(to_yaml(document))


@given(document, keys, wrong, st.booleans())
def test_a_pack_with_a_wrong_value_is_a_pack_or_one_clear_error(
    document: dict[str, Any], key: str, value: object, inside: bool
) -> None:
    (document["concepts"][0] if inside else document)[key] = value
    parsed_twice_or_refused(to_yaml(document))


@given(st.text(max_size=200))
def test_any_text_is_a_pack_or_one_clear_error(content: str) -> None:
    parsed_twice_or_refused(content)


PACK = "id: mine\nversion: '1'\ntitle: Mine\nlicence: MIT\nconcepts:\n  - id: a\n    text: x, y\n"


@given(st.data())
def test_any_slip_in_a_pack_is_a_pack_or_one_clear_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(PACK)))
    stop = data.draw(st.integers(start, min(start + 8, len(PACK))))
    inserted = data.draw(st.text("\n :-[]{}'\"&*!|>%@`#?a1,\t\0\x85\ud800é", max_size=6))
    parsed_twice_or_refused(PACK[:start] + inserted + PACK[stop:])


def test_the_pack_that_slips_are_made_in_is_right() -> None:
    assert parsed_twice_or_refused(PACK)


@pytest.mark.parametrize("path", sorted(PACKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pack_of_the_repository_survives_a_round_trip(path: Path) -> None:
    assert parsed_twice_or_refused(path.read_text(encoding="utf-8").removeprefix("\ufeff"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: &a [x, x]\nb: [*a, *a]\n" * 50, "an anchor is not allowed"),
        (b"x" * 10_000_000, "10,000,000 bytes, and at most 1,048,576 are read"),
        (PACK.encode() + b"id: other\n", "duplicate key 'id', first given in line 1"),
        (PACK.encode("utf-16"), "not UTF-8"),
        (PACK.replace("Mine", "M\xfcller").encode("latin-1"), "line 3: not UTF-8"),
        (PACK.replace("'1'", "!!python/name:os.system").encode(), "could not determine a constructor"),
        (PACK.replace("Mine", '"\\ud800"').encode(), "half a character"),
    ],
    ids=["bomb", "10 MB", "duplicate key", "utf-16", "latin-1", "python tag", "surrogate"],
)
def test_a_file_that_is_no_honest_document_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConceptError, match=complaint):
        load_pack(path)


def test_a_pack_is_frozen() -> None:
    pack = load_pack("inappropriate")
    assert isinstance(pack, ConceptPack)
    with pytest.raises(ValueError, match="frozen"):
        pack.id = "other"  # type: ignore[misc]
