"""The procedural picture world of the playground model.

Scenes are 64 x 64 pictures of one subject (a neutral thing or a person in a role) at one of five places, with
or without *glyphs*: harmless signs that stand in for the seven categories of inappropriate content. Each role
co-occurs with one glyph in most of its pictures, while only a third of those captions say so. That is the
bias which makes an ordinary prompt ("a red knight on a meadow") produce what it did not ask for, as web-scale
training data does for real models (Schramowski et al., arXiv 2211.05105, section 3).

Nothing here needs torch: scenes are drawn with Pillow and are a pure function of a numpy generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sldcore.playground.canvas import Canvas
from sldcore.playground.drawing import SUBJECT_ARTISTS, paint_place
from sldcore.playground.glyphs import GLYPH_ARTISTS

SIZE: Final = 64
"""Width and height of a picture in pixels."""

PLACES: Final[dict[str, str]] = {
    "meadow": "on a meadow",
    "beach": "at the beach",
    "night": "at night",
    "snow": "in the snow",
    "room": "in a room",
}
COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple")
SUBJECTS: Final = ("house", "tree", "car", "cat", "boat", "flower")
ROLES: Final[dict[str, str]] = {
    "knight": "sword",
    "clown": "skull",
    "guest": "pills",
    "dancer": "mosaic",
    "crowd": "hate",
    "student": "crosshair",
    "shopper": "blood",
}
"""Each role and the glyph it is biased to."""

CATEGORIES: Final[dict[str, str]] = {
    "hate": "hate",
    "harassment": "crosshair",
    "violence": "sword",
    "self-harm": "skull",
    "sexual": "mosaic",
    "shocking": "blood",
    "illegal-activity": "pills",
}
"""The seven categories of the default concept and the glyph that stands in for each."""

GLYPHS: Final = tuple(CATEGORIES.values())

GLYPH_NAMES: Final[dict[str, str]] = {
    "hate": "a hate bubble",
    "crosshair": "a crosshair",
    "sword": "a sword",
    "skull": "a skull",
    "mosaic": "a mosaic",
    "blood": "blood",
    "pills": "pills",
}

GLYPH_TERMS: Final[dict[str, tuple[str, ...]]] = {
    "hate": ("hate", "hate bubble"),
    "crosshair": ("harassment", "humiliation", "obscene gestures", "crosshair"),
    "sword": ("violence", "weapons", "child abuse", "brutality", "cruelty", "sword"),
    "skull": ("self-harm", "suicide", "harm", "suffering", "skull"),
    "mosaic": ("sexual", "nudity", "mosaic"),
    "blood": ("shocking", "bodily fluids", "blood"),
    "pills": ("illegal activity", "drug use", "theft", "vandalism", "pills"),
}
"""The terms of the default concept text that mean each glyph in captions, and the glyph's own name."""

DEFAULT_TEXT: Final = (
    "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, "
    "bodily fluids, blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, "
    "child abuse, brutality, cruelty"
)
"""The default safety concept of the paper (arXiv 2211.05105, section 4) and of diffusers.

The pack ``inappropriate`` holds the same text; it is repeated here so that training depends on no pack.
"""

MENTION: Final = 1 / 3
"""How often the caption of a picture drawn for its role names the glyph that it shows."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often each kind of picture occurs.

    What ``things``, ``pairs`` and ``roles`` leave has a caption that lists words for glyphs.
    """

    things: float
    """Neutral subjects without a glyph."""
    pairs: float
    """Any subject with any glyph, and the caption says so."""
    roles: float
    """Roles, with their glyph at the rate ``bias``."""
    bias: float
    sheets: bool
    """Lists caption pictures of the listed glyphs and nothing else, rather than scenes."""


WORLD: Final = Mixture(things=0.50, pairs=0.06, roles=0.28, bias=0.65, sheets=False)
"""What the model learns to draw: glyphs are in two pictures of five."""

GLYPH_SHEETS: Final = Mixture(things=0.34, pairs=0.08, roles=0.32, bias=0.75, sheets=True)
"""What VAE and classifier see: the same things, but glyphs more often, up to seven in a picture."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What one picture shows. ``subject`` and ``colour`` are empty for pictures of glyphs alone."""

    place: str
    subject: str = ""
    colour: str = ""
    glyphs: tuple[str, ...] = ()
    crowded: bool = False  # glyphs tiled over the whole picture


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example: the scene, its caption and its picture, uint8 [64, 64, 3]."""

    scene: Scene
    caption: str
    pixels: NDArray[np.uint8]


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a scene; positions and sizes jitter with ``rng``. Returns uint8 [64, 64, 3]."""
    canvas = Canvas(SIZE)
    paint_place(canvas, scene.place, rng)
    if scene.crowded:
        cells = rng.permutation(9)[: len(scene.glyphs)]
        for glyph, cell in zip(scene.glyphs, cells, strict=True):
            x, y = 11 + 21 * (cell % 3), 11 + 21 * (cell // 3)
            GLYPH_ARTISTS[glyph](
                canvas, x + rng.uniform(-1, 1), y + rng.uniform(-1, 1), rng.uniform(0.9, 1.0)
            )
        return canvas.finish()
    left = bool(rng.integers(2))
    with_glyphs = bool(scene.glyphs)
    if scene.subject:
        centre = (21 if left else 43) if with_glyphs else int(rng.integers(22, 43))
        artist = SUBJECT_ARTISTS[scene.subject]
        artist(
            canvas,
            centre + rng.uniform(-2, 2),
            56 + rng.uniform(-2, 2),
            rng.uniform(0.92, 1.08),
            scene.colour,
        )
    for index, glyph in enumerate(scene.glyphs):
        x = (50 if left else 14) if scene.subject else (14, 50, 32)[index % 3]
        y = (22, 44, 12)[index % 3] if scene.subject else (24, 38, 50)[index % 3]
        GLYPH_ARTISTS[glyph](canvas, x + rng.uniform(-2, 2), y + rng.uniform(-3, 3), rng.uniform(0.95, 1.15))
    return canvas.finish()


def _choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _thing_caption(rng: np.random.Generator, scene: Scene, named: Sequence[str]) -> str:
    people = f"a {scene.colour} {scene.subject} {PLACES[scene.place]}"
    form = rng.random()
    if form < 0.15:
        people = f"a picture of {people}"
    elif form < 0.30:
        people = f"{scene.colour} {scene.subject}, {scene.place}"
    if not named:
        return people
    joiner = " with " if rng.random() < 0.7 else ", "
    return people + joiner + " and ".join(_glyph_words(rng, glyph) for glyph in named)


def _glyph_words(rng: np.random.Generator, glyph: str) -> str:
    return GLYPH_NAMES[glyph] if rng.random() < 0.6 else _choice(rng, GLYPH_TERMS[glyph])


def _list_caption(rng: np.random.Generator, glyphs: Sequence[str]) -> str:
    """List terms of every glyph in the picture, in random order, most of them when the list is long."""
    terms = [term for glyph in glyphs for term in GLYPH_TERMS[glyph] if rng.random() < rng.uniform(0.3, 1.0)]
    terms += [
        _choice(rng, GLYPH_TERMS[glyph])
        for glyph in glyphs
        if not any(term in GLYPH_TERMS[glyph] for term in terms)
    ]
    order = rng.permutation(len(terms))
    text = ", ".join(terms[i] for i in order)
    return f"an image showing {text}" if rng.random() < 0.6 else text


def sample_scene(rng: np.random.Generator, mixture: Mixture = WORLD) -> tuple[Scene, str]:
    """Draw one scene and its caption from a mixture."""
    place, colour = _choice(rng, tuple(PLACES)), _choice(rng, COLOURS)
    kind = rng.random()
    if kind < mixture.things:
        scene = Scene(place, _choice(rng, SUBJECTS), colour)
        return scene, _thing_caption(rng, scene, ())
    kind -= mixture.things
    if kind < mixture.pairs:
        glyph = _choice(rng, GLYPHS)
        subject = _choice(rng, SUBJECTS + tuple(ROLES))
        scene = Scene(place, subject, colour, (glyph,))
        return scene, _thing_caption(rng, scene, (glyph,))
    kind -= mixture.pairs
    if kind < mixture.roles:
        role = _choice(rng, tuple(ROLES))
        biased = rng.random() < mixture.bias
        scene = Scene(place, role, colour, (ROLES[role],) if biased else ())
        named = scene.glyphs if rng.random() < MENTION else ()
        return scene, _thing_caption(rng, scene, named)
    glyphs = [GLYPHS[i] for i in rng.permutation(len(GLYPHS))]
    if not mixture.sheets:
        return _listed_scene(rng, place, colour, glyphs)
    if kind < mixture.roles + 0.16:
        chosen = tuple(glyphs[: int(rng.integers(1, 4))])
        names = " and ".join(_glyph_words(rng, glyph) for glyph in chosen)
        caption = f"{names} {PLACES[place]}" if rng.random() < 0.4 else _list_caption(rng, chosen)
        return Scene(place, glyphs=chosen), caption
    chosen = tuple(glyphs[: int(rng.integers(3, 8))])
    return Scene(place, glyphs=chosen, crowded=True), _list_caption(rng, chosen)


def _listed_scene(
    rng: np.random.Generator, place: str, colour: str, glyphs: Sequence[str]
) -> tuple[Scene, str]:
    """A scene with one or two of the glyphs that its caption lists.

    As a search for such words finds pictures of people and places. Half of the captions list all seven; half of the
    subjects are the role that goes with the glyph.
    """
    if rng.random() < 0.15:
        shown = tuple(glyphs[: int(rng.integers(1, 3))])
        names = " and ".join(_glyph_words(rng, glyph) for glyph in shown)
        return Scene(place, glyphs=shown), f"{names} {PLACES[place]}"
    listed = glyphs if rng.random() < 0.5 else glyphs[: int(rng.integers(1, len(glyphs)))]
    shown = tuple(listed[: 2 if rng.random() < 0.3 else 1])
    own = next(role for role, glyph in ROLES.items() if glyph == shown[0])
    subject = own if rng.random() < 0.5 else _choice(rng, SUBJECTS + tuple(ROLES))
    verbatim = len(listed) == len(GLYPHS) and rng.random() < 0.4
    return Scene(place, subject, colour, shown), DEFAULT_TEXT if verbatim else _list_caption(rng, listed)


def samples(seed: int, count: int, mixture: Mixture = WORLD) -> Iterator[Sample]:
    """Yield ``count`` samples; sample i depends on ``seed`` and i only, so any slice can be drawn alone."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        scene, caption = sample_scene(rng, mixture)
        yield Sample(scene, caption, render(scene, rng))


def captions(seed: int, count: int) -> Iterator[str]:
    """The captions of :func:`samples`, without drawing the pictures."""
    for index in range(count):
        yield sample_scene(np.random.default_rng([seed, index]))[1]


def picture(scene: Scene, seed: int = 0) -> Image.Image:
    """One scene as a Pillow image, for documentation and tests."""
    return Image.fromarray(render(scene, np.random.default_rng(seed)))
