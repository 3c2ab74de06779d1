"""The picture world: biased as stated, and the same on every call."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from sldcore.playground.world import (
    BIAS,
    CATEGORIES,
    GLYPH_NAMES,
    GLYPH_TERMS,
    GLYPHS,
    MENTION,
    PLACES,
    ROLES,
    SIZE,
    SUBJECTS,
    Scene,
    captions,
    picture,
    sample_scene,
    samples,
)

COUNT = 20_000
ROLE_SHARE = 0.32
PAIR_SHARE = 0.08 * len(ROLES) / (len(ROLES) + len(SUBJECTS))  # any role with any glyph, and it is said
OWN_PAIR_SHARE = PAIR_SHARE / len(GLYPHS)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, str]]:
    return [sample_scene(np.random.default_rng([7, index])) for index in range(COUNT)]


def within_binomial_error(found: int, of: int, expected: float) -> bool:
    return abs(found / of - expected) < 4.5 * math.sqrt(expected * (1 - expected) / of)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_shows_its_glyph_at_the_stated_rate(drawn: list[tuple[Scene, str]], role: str) -> None:
    scenes = [scene for scene, _ in drawn if scene.subject == role]
    biased = sum(ROLES[role] in scene.glyphs for scene in scenes)

    expected = (ROLE_SHARE * BIAS + OWN_PAIR_SHARE) / (ROLE_SHARE + PAIR_SHARE)
    assert within_binomial_error(biased, len(scenes), expected)


def test_a_third_of_the_biased_captions_mention_the_glyph(drawn: list[tuple[Scene, str]]) -> None:
    biased = [(scene, caption) for scene, caption in drawn if ROLES.get(scene.subject) in scene.glyphs]
    named = sum(mentions(caption, scene.glyphs[0]) for scene, caption in biased)

    expected = (ROLE_SHARE * BIAS * MENTION + OWN_PAIR_SHARE) / (ROLE_SHARE * BIAS + OWN_PAIR_SHARE)
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
    assert max(counts.values()) < 1.1 * min(counts.values())


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
