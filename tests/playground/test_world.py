"""The picture world: biased as stated, and the same on every call."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from sldcore.playground.world import (
    CATEGORIES,
    DEFAULT_TEXT,
    GLYPH_NAMES,
    GLYPH_SHEETS,
    GLYPH_TERMS,
    GLYPHS,
    MENTION,
    PLACES,
    ROLES,
    SIZE,
    SUBJECTS,
    WORLD,
    Scene,
    captions,
    picture,
    sample_scene,
    samples,
)

COUNT = 20_000
PAIR_SHARE = (
    WORLD.pairs * len(ROLES) / (len(ROLES) + len(SUBJECTS))
)  # any role with any glyph, and it is said
OWN_PAIR_SHARE = PAIR_SHARE / len(GLYPHS)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, str]]:
    return [sample_scene(np.random.default_rng([7, index])) for index in range(COUNT)]


@pytest.fixture(scope="module")
def described(drawn: list[tuple[Scene, str]]) -> list[tuple[Scene, str]]:
    """Those whose caption names the subject, which lists of words do not."""
    return [(scene, caption) for scene, caption in drawn if scene.subject and scene.subject in caption]


def within_binomial_error(found: int, of: int, expected: float) -> bool:
    return abs(found / of - expected) < 4.5 * math.sqrt(expected * (1 - expected) / of)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_shows_its_glyph_at_the_stated_rate(described: list[tuple[Scene, str]], role: str) -> None:
    scenes = [scene for scene, _ in described if scene.subject == role]
    biased = sum(ROLES[role] in scene.glyphs for scene in scenes)

    expected = (WORLD.roles * WORLD.bias + OWN_PAIR_SHARE) / (WORLD.roles + PAIR_SHARE)
    assert within_binomial_error(biased, len(scenes), expected)


def test_a_third_of_the_biased_captions_mention_the_glyph(described: list[tuple[Scene, str]]) -> None:
    biased = [(scene, caption) for scene, caption in described if ROLES.get(scene.subject) in scene.glyphs]
    named = sum(mentions(caption, scene.glyphs[0]) for scene, caption in biased)

    expected = (WORLD.roles * WORLD.bias * MENTION + OWN_PAIR_SHARE) / (
        WORLD.roles * WORLD.bias + OWN_PAIR_SHARE
    )
    assert within_binomial_error(named, len(biased), expected)


def mentions(caption: str, glyph: str) -> bool:
    return any(term in caption for term in (GLYPH_NAMES[glyph], *GLYPH_TERMS[glyph]))


def test_neutral_subjects_show_glyphs_only_where_the_caption_says_so(drawn: list[tuple[Scene, str]]) -> None:
    with_glyph = [(scene, caption) for scene, caption in drawn if scene.subject in SUBJECTS and scene.glyphs]

    assert with_glyph
    assert all(mentions(caption, scene.glyphs[0]) for scene, caption in with_glyph)


def test_every_glyph_is_as_common_as_the_others(drawn: list[tuple[Scene, str]]) -> None:
    counts = Counter(glyph for scene, _ in drawn for glyph in scene.glyphs)
    assert set(counts) == set(GLYPHS)
    total = sum(counts.values())
    assert all(within_binomial_error(count, total, 1 / len(GLYPHS)) for count in counts.values())


def test_a_sample_depends_on_seed_and_index_only() -> None:
    few, many = list(samples(3, 4)), list(samples(3, 9))
    for one, other in zip(few, many, strict=False):
        assert (one.scene, one.caption) == (other.scene, other.caption)
        assert np.array_equal(one.pixels, other.pixels)


def test_another_seed_gives_other_samples() -> None:
    assert [s.caption for s in samples(0, 8)] != [s.caption for s in samples(1, 8)]


def test_captions_are_those_of_the_samples() -> None:
    assert list(captions(5, 12)) == [sample.caption for sample in samples(5, 12)]


def test_pictures_are_small_rgb_arrays() -> None:
    (sample,) = samples(0, 1)
    assert sample.pixels.shape == (SIZE, SIZE, 3)
    assert sample.pixels.dtype == np.uint8


@pytest.mark.parametrize("glyph", GLYPHS)
@pytest.mark.parametrize("place", PLACES)
def test_a_glyph_changes_the_picture_visibly(place: str, glyph: str) -> None:
    without = np.asarray(picture(Scene(place)), dtype=np.int16)
    with_glyph = np.asarray(picture(Scene(place, glyphs=(glyph,))), dtype=np.int16)
    changed = (np.abs(without - with_glyph).max(axis=2) > 40).mean()
    assert changed > 0.02


def test_a_crowded_picture_shows_all_its_glyphs_in_places_of_their_own() -> None:
    one = np.asarray(picture(Scene("room", glyphs=GLYPHS[:3], crowded=True)), dtype=np.int16)
    all_seven = np.asarray(picture(Scene("room", glyphs=GLYPHS, crowded=True)), dtype=np.int16)
    empty = np.asarray(picture(Scene("room")), dtype=np.int16)
    assert (np.abs(all_seven - empty).max(axis=2) > 40).sum() > (np.abs(one - empty).max(axis=2) > 40).sum()


def test_each_category_has_a_glyph_of_its_own_and_each_glyph_a_role() -> None:
    assert len(CATEGORIES) == len(set(CATEGORIES.values())) == 7
    assert sorted(ROLES.values()) == sorted(GLYPHS)


def test_lists_of_words_caption_scenes_that_show_some_of_them(drawn: list[tuple[Scene, str]]) -> None:
    listed = [(scene, caption) for scene, caption in drawn if scene.subject and scene.subject not in caption]
    assert listed
    assert all(1 <= len(scene.glyphs) <= 2 for scene, _ in listed)
    assert all(mentions(caption, glyph) for scene, caption in listed for glyph in scene.glyphs)
    assert any(caption == DEFAULT_TEXT for _, caption in listed)


def test_the_default_text_speaks_of_every_glyph() -> None:
    assert all(mentions(DEFAULT_TEXT, glyph) for glyph in GLYPHS)


def test_sheets_of_glyphs_are_in_their_own_mixture_only(drawn: list[tuple[Scene, str]]) -> None:
    sheets = [sample_scene(np.random.default_rng([7, index]), GLYPH_SHEETS)[0] for index in range(400)]
    assert any(scene.crowded for scene in sheets)
    assert not any(scene.crowded for scene, _ in drawn)


def test_two_pictures_of_five_show_glyphs(drawn: list[tuple[Scene, str]]) -> None:
    with_glyphs = sum(bool(scene.glyphs) for scene, _ in drawn)
    lists = 1 - WORLD.things - WORLD.pairs - WORLD.roles
    assert within_binomial_error(with_glyphs, len(drawn), WORLD.pairs + WORLD.roles * WORLD.bias + lists)
