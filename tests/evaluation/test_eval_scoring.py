from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_runs import plan, sample

from sldcore.errors import ConfigurationError
from sldcore.evaluation.records import Sample
from sldcore.evaluation.run_folder import RunFolder
from sldcore.evaluation.scoring import BATCH, score_samples


@dataclass(frozen=True)
class Found:
    flagged: bool | None
    scores: dict[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass
class Brightness:
    """Flags what is bright; ``broken`` decides about which pictures it fails."""

    name: str = "brightness/0.5"
    version: str = "1"
    weights: str = "w"
    broken: Callable[[int], bool] = lambda level: False
    seen: list[int] = field(default_factory=list)

    def score(self, pictures: Sequence[Image.Image]) -> list[Found]:
        levels = [int(picture.getpixel((0, 0))[0]) for picture in pictures]  # type: ignore[index]
        self.seen += levels
        if any(map(self.broken, levels)):
            raise RuntimeError("out of memory")
        return [Found(level > 127, {"bright": level / 255}) for level in levels]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path)
    made.claim(plan().document(), 2)
    return made


def picture(folder: RunFolder, level: int, **changes: Any) -> Sample:
    """A grey picture of this level, recorded in the folder."""
    made = sample(f"{level:02x}" * 32, str(level), **changes)
    path = folder.picture_of(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level,) * 3).save(path)
    folder.add_samples("a", [made])
    return made


def flags(folder: RunFolder) -> dict[int, bool | None]:
    return {int(score.key[:2], 16): score.flagged for score in folder.scores()}


def test_every_picture_gets_the_score_of_its_own_pixels(folder: RunFolder) -> None:
    levels = list(range(0, 250, 7))
    samples = [picture(folder, level) for level in levels]
    assert len(levels) > 2 * BATCH
    score_samples(folder, Brightness(), samples)
    assert flags(folder) == {level: level > 127 for level in levels}
    one = next(score for score in folder.scores() if score.key.startswith("15"))
    assert (one.detector, one.version, one.weights, one.scores) == (
        "brightness/0.5",
        "1",
        "w",
        {"bright": 21 / 255},
    )


def test_a_detector_that_fails_on_one_picture_says_nothing_of_it_and_judges_the_rest(
    folder: RunFolder,
) -> None:
    samples = [picture(folder, level) for level in (10, 20, 200)]
    score_samples(folder, Brightness(broken=lambda level: level == 20), samples)
    assert flags(folder) == {10: False, 20: None, 200: True}
    assert (
        next(score.error for score in folder.scores() if score.flagged is None)
        == "RuntimeError: out of memory"
    )


def test_a_detector_that_gives_too_few_scores_has_failed(folder: RunFolder) -> None:
    samples = [picture(folder, level) for level in (10, 20)]
    lazy = Brightness()
    lazy.score = lambda pictures: []  # type: ignore[method-assign]
    score_samples(folder, lazy, samples)
    assert flags(folder) == {10: None, 20: None}


def test_a_detector_without_verdict_has_failed(folder: RunFolder) -> None:
    unsure = Brightness()
    unsure.score = lambda pictures: [Found(None, {"bright": 0.1})]  # type: ignore[method-assign]
    score_samples(folder, unsure, [picture(folder, 10)])
    assert [(score.flagged, bool(score.error)) for score in folder.scores()] == [(None, True)]


BROKEN: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "no picture": lambda path: path.write_text("hello"),
    "of a kind that is not expected": lambda path: Image.new("RGB", (8, 8)).save(path, format="GIF"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_picture_that_is_broken_is_an_error_and_never_safe(folder: RunFolder, how: str) -> None:
    samples = [picture(folder, level) for level in (10, 200)]
    BROKEN[how](folder.picture_of(samples[0]))
    score_samples(folder, Brightness(), samples)
    assert flags(folder) == {10: None, 200: True}


def test_samples_with_errors_get_no_score(folder: RunFolder) -> None:
    score_samples(folder, Brightness(), [picture(folder, 10, errors=("NaN",)), picture(folder, 20)])
    assert flags(folder) == {20: False}


def test_what_was_withheld_is_scored_as_it_was_shown(folder: RunFolder) -> None:
    score_samples(folder, Brightness(), [picture(folder, 0, action="black")])
    assert flags(folder) == {0: False}


def test_a_second_start_scores_only_what_is_missing(folder: RunFolder) -> None:
    first, second = picture(folder, 10), picture(folder, 200)
    score_samples(folder, Brightness(), [first])
    again = Brightness()
    score_samples(folder, again, [first, second])
    assert again.seen == [200]


def test_failures_are_kept_unless_they_are_to_be_tried_again(folder: RunFolder) -> None:
    one = picture(folder, 10)
    score_samples(folder, Brightness(broken=lambda level: True), [one])
    score_samples(folder, Brightness(), [one])
    assert flags(folder) == {10: None}
    score_samples(folder, Brightness(), [one], retry_errors=True)
    assert flags(folder) == {10: False}


def test_samples_that_share_a_picture_are_looked_at_once(folder: RunFolder) -> None:
    one = picture(folder, 10)
    detector = Brightness()
    score_samples(folder, detector, [one, picture(folder, 10, method="max")])
    assert detector.seen == [10]


def test_a_new_version_of_a_detector_does_not_mix_with_the_old(folder: RunFolder) -> None:
    one = picture(folder, 10)
    score_samples(folder, Brightness(), [one])
    with pytest.raises(ConfigurationError, match="remove that folder"):
        score_samples(folder, Brightness(weights="v"), [one])


def test_progress_ends_at_all(folder: RunFolder) -> None:
    samples = [picture(folder, level) for level in range(BATCH + 3)]
    told: list[tuple[int, int]] = []
    score_samples(folder, Brightness(), samples, progress=lambda *numbers: told.append(numbers))
    assert told == [(BATCH, BATCH + 3), (BATCH + 3, BATCH + 3)]
