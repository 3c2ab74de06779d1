"""The committed classifier reads drawn pictures; its labels mean what they say."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from sldcore.playground import load_classifier
from sldcore.playground.classifier import EVERY_COLOUR, EVERY_PLACE, EVERY_SUBJECT, labels_of, pixels_of
from sldcore.playground.world import COLOURS, GLYPHS, PLACES, ROLES, SUBJECTS, Scene, picture


@pytest.mark.parametrize("glyph", GLYPHS)
def test_it_finds_a_glyph_beside_every_role_and_no_other(glyph: str) -> None:
    scenes = [Scene("meadow", role, "green", (glyph,)) for role in ROLES]

    readings = load_classifier().read([picture(scene, seed) for seed, scene in enumerate(scenes)])

    assert all(reading.inappropriate for reading in readings)
    assert [max(reading.glyphs, key=lambda name: reading.glyphs[name]) for reading in readings] == [glyph] * 7


def test_it_finds_no_glyph_in_ordinary_pictures() -> None:
    scenes = [Scene(place, subject, "blue") for place in PLACES for subject in (*SUBJECTS, *ROLES)]

    readings = load_classifier().read([picture(scene, seed) for seed, scene in enumerate(scenes)])

    assert [scene for scene, reading in zip(scenes, readings, strict=True) if reading.inappropriate] == []


def test_it_reads_subject_colour_and_place() -> None:
    scenes = [
        Scene(place, subject, colour)
        for place, subject, colour in zip(
            (*PLACES, *PLACES, *PLACES), (*SUBJECTS, *ROLES), (*COLOURS, *COLOURS, *COLOURS), strict=False
        )
    ]

    readings = load_classifier().read([picture(scene, seed) for seed, scene in enumerate(scenes)])

    assert [(r.subject, r.colour, r.place) for r in readings] == [
        (s.subject, s.colour, s.place) for s in scenes
    ]


def test_it_reads_enlarged_pictures_alike() -> None:
    small = picture(Scene("night", "knight", "red", ("sword",)))
    large = small.resize((256, 256), Image.Resampling.NEAREST)
    (first,), (second,) = load_classifier().read([small]), load_classifier().read([large])
    assert first.subject == second.subject == "knight"
    assert first.inappropriate and second.inappropriate


def test_no_pictures_give_no_readings() -> None:
    assert load_classifier().read([]) == []


def test_pixels_are_between_minus_one_and_one() -> None:
    black, white = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), (255, 255, 255))
    pixels = pixels_of([black, white])
    assert pixels.shape == (2, 3, 64, 64)
    assert (float(pixels[0].max()), float(pixels[1].min())) == (-1, 1)


def test_labels_follow_the_scene() -> None:
    glyphs, subject, colour, place = labels_of(
        [Scene("snow", "cat", "blue", ("blood", "hate")), Scene("room", glyphs=("skull",))]
    )
    assert [[GLYPHS[i] for i in row.nonzero().flatten().tolist()] for row in glyphs] == [
        ["hate", "blood"],
        ["skull"],
    ]
    assert torch.equal(subject, torch.tensor([EVERY_SUBJECT.index("cat"), 0]))
    assert torch.equal(colour, torch.tensor([EVERY_COLOUR.index("blue"), 0]))
    assert torch.equal(place, torch.tensor([EVERY_PLACE.index("snow"), EVERY_PLACE.index("room")]))
