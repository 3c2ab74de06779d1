"""From the pictures of methods_table.py to its numbers: one line per method and prompt set, and paired comparisons."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sldcore.errors import ConfigurationError
from sldcore.evaluation.estimates import Estimate, mean
from sldcore.evaluation.metrics import ip, relative_cost, share
from sldcore.evaluation.paired import Bootstrap, McNemar, mcnemar, paired_bootstrap, paired_difference
from sldcore.evaluation.records import Sample
from sldcore.evaluation.run_folder import RunFolder
from sldcore.evaluation.side_effects import bit_identical, rmse
from sldcore.playground import load_classifier
from sldcore.playground.classifier import Reading, SceneClassifier
from sldcore.playground.world import COLOURS, PLACES, ROLES, SUBJECTS

BATCH: Final = 200
ASKED: Final = re.compile(
    rf"a ({'|'.join(COLOURS)}) ({'|'.join((*SUBJECTS, *ROLES))}) ({'|'.join(PLACES.values())})( with .*)?"
)
Where = tuple[str, int]
"""Item of a benchmark, and number of its picture."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a method, and what the classifier read in it."""

    sample: Sample
    reading: Reading
    pixels: NDArray[np.uint8]

    @property
    def agrees(self) -> tuple[float, float, float]:
        """Whether subject, colour and place are the prompt's; NaN where the prompt names no subject."""
        asked = ASKED.fullmatch(self.sample.prompt)
        if asked is None:
            return (np.nan,) * 3
        colour, subject, place, _ = asked.groups()
        reading = self.reading
        return (
            float(reading.subject == subject),
            float(reading.colour == colour),
            float(PLACES[reading.place] == place),
        )


Pictures = Mapping[Where, Picture]
Run = Mapping[tuple[str, str], Pictures]
"""Pictures by benchmark and method."""


@dataclass(frozen=True, slots=True)
class Line:
    """A method on one prompt set.

    ``drop`` is the IP of off minus its own, over the same pictures. ``subject``, ``colour`` and ``place`` are shares that agree
    with the prompt. ``identical`` and ``moved`` (RMSE) compare with the unguided pictures; ``rows`` and ``seconds`` are
    relative to unguided ones.
    """

    method: str
    ip: Estimate
    drop: Estimate
    subject: Estimate
    colour: Estimate
    place: Estimate
    identical: Estimate
    moved: Estimate
    rows: Estimate
    seconds: Estimate


def read_run(folder: Path) -> Run:
    """All pictures of one stage, as far as they are made; nothing if there is no such folder.

    Raises:
        ConfigurationError: a picture was withheld, or could not be made.
    """
    if not folder.exists():
        return {}
    run = RunFolder(folder)
    samples = [each for each in run.evaluation().samples if run.picture_of(each).exists()]
    if bad := [each for each in samples if each.errors or each.withheld]:
        raise ConfigurationError(f"{len(bad)} pictures in {folder} were withheld: {bad[0].errors}")
    images = [Image.open(run.picture_of(each)).convert("RGB") for each in samples]
    found: dict[tuple[str, str], dict[Where, Picture]] = {}
    for sample, image, reading in zip(samples, images, _read(images), strict=True):
        pictures = found.setdefault((sample.benchmark, sample.method), {})
        pictures[sample.item, sample.image] = Picture(sample, reading, np.asarray(image))
    return found


def refused(folder: Path) -> dict[str, str]:
    """What the engine said of policies that it refused in this stage, by name."""
    path = folder / "refused.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@cache
def _classifier() -> SceneClassifier:
    return load_classifier()


def _read(images: Sequence[Image.Image]) -> Iterator[Reading]:
    for start in range(0, len(images), BATCH):
        yield from _classifier().read(list(images[start : start + BATCH]))


def together(*pictures: Pictures) -> list[Where]:
    """What all of them have, in a fixed order."""
    return sorted(set.intersection(*(set(each) for each in pictures)))


def line(method: str, own: Pictures, off: Pictures) -> Line:
    """The numbers of a method, over the pictures that it and off have."""
    shared = together(own, off)
    mine, plain = [own[each] for each in shared], [off[each] for each in shared]
    prompts = [each.sample.prompt for each in mine]
    agree = np.array([each.agrees for each in mine]).reshape(-1, 3)
    return Line(
        method,
        ip(flags(mine), prompts),
        paired_difference(flags(plain), flags(mine), prompts),
        *(mean(agree[:, column], prompts) for column in range(3)),
        share(bit_identical(hashes(mine), hashes(plain)), prompts),
        mean(rmse([each.pixels for each in mine], [each.pixels for each in plain]), prompts),
        relative_cost(
            [each.sample.rows for each in mine], [each.sample.plain_rows for each in plain], prompts
        ),
        relative_cost(
            [each.sample.seconds for each in mine], [each.sample.seconds for each in plain], prompts
        ),
    )


def flags(pictures: Sequence[Picture]) -> list[float]:
    """1 where a glyph is found."""
    return [float(each.reading.inappropriate) for each in pictures]


def hashes(pictures: Sequence[Picture]) -> list[str]:
    """What identifies each picture's pixels."""
    return [each.sample.pixels for each in pictures]


@dataclass(frozen=True, slots=True)
class Paired:
    """First minus second in IP, over the same prompts and seeds."""

    difference: Bootstrap
    test: McNemar


def paired(first: Pictures, second: Pictures) -> Paired:
    """The IP of two methods on the same prompts and seeds."""
    shared = together(first, second)
    a, b = flags([first[each] for each in shared]), flags([second[each] for each in shared])
    prompts = [first[each].sample.prompt for each in shared]
    return Paired(paired_bootstrap(a, b, prompts), mcnemar(a, b, prompts))


def distance(first: Pictures, second: Pictures) -> Estimate:
    """RMSE between the pictures of two methods."""
    shared = together(first, second)
    values = rmse([first[each].pixels for each in shared], [second[each].pixels for each in shared])
    return mean(values, [first[each].sample.prompt for each in shared])


def missed(own: Pictures, off: Pictures) -> tuple[int, int]:
    """Unguided pictures with a glyph that a gated method left as they are, and how many have a glyph."""
    shown = [each for each in together(own, off) if off[each].reading.inappropriate]
    left = [each for each in shown if own[each].sample.pixels == off[each].sample.pixels]
    return len(left), len(shown)
