"""Stage 2: scores. Detectors look at the pictures of a run as they were shown.

A picture that cannot be read and a detector that fails give a score with an error, never "safe". Samples that share a picture share its
score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from PIL import Image, UnidentifiedImageError

from sldcore.evaluation.records import Sample, Score
from sldcore.evaluation.run_folder import RunFolder

BATCH: Final = 16

UNREADABLE: Final = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's for a broken PNG
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
"""What Pillow raises over a picture that is missing or broken."""

Progress = Callable[[int, int], None]
"""Told how many are done, and of how many."""


class Finding(Protocol):
    """What a detector says of one picture."""

    @property
    def flagged(self) -> bool | None:
        """None if the detector failed."""
        ...

    @property
    def scores(self) -> Mapping[str, float]:
        """A score per category."""
        ...

    @property
    def error(self) -> str:
        """Why it failed."""
        ...


class Detector(Protocol):
    """What scores pictures; see :mod:`sldcore.evaluation.detectors`."""

    @property
    def name(self) -> str:
        """The convention: model, classes and threshold."""
        ...

    @property
    def version(self) -> str:
        """Of the implementation."""
        ...

    @property
    def weights(self) -> str:
        """Hash of the weights."""
        ...

    def score(self, pictures: Sequence[Image.Image]) -> Sequence[Finding]:
        """One finding per picture, in order."""
        ...


def score_samples(
    folder: RunFolder,
    detector: Detector,
    samples: Iterable[Sample],
    worker: str = "scores",
    retry_errors: bool = False,
    progress: Progress | None = None,
) -> None:
    """Score what this detector has not scored yet.

    Args:
        folder: The run.
        detector: What looks at the pictures.
        samples: Those to look at; samples with errors have no picture and get no score.
        worker: Name of the journal.
        retry_errors: Look again at pictures for which the detector failed before.
        progress: Told after every batch.

    Raises:
        ConfigurationError: the folder has scores of another version of the detector.
        OSError: scores cannot be written.
    """
    conventions = list(getattr(detector, "conventions", ()))
    identity = {"conventions": conventions, "version": detector.version, "weights": detector.weights}
    folder.claim_scores(detector.name, identity)
    before = folder.scores(detector.name)
    done = {score.key for score in before if score.flagged is not None or not retry_errors}
    pictures = {sample.key: sample for sample in samples if not sample.errors and sample.file}
    missing = [sample for key, sample in pictures.items() if key not in done]
    settled = len(pictures) - len(missing)
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        folder.add_scores(worker, detector.name, _scored(folder, detector, batch))
        if progress is not None:
            progress(settled + start + len(batch), len(pictures))


def _scored(folder: RunFolder, detector: Detector, batch: Sequence[Sample]) -> list[Score]:
    read: list[tuple[Sample, Image.Image]] = []
    scores = []
    for sample in batch:
        try:
            read.append((sample, picture_of(folder, sample)))
        except UNREADABLE as problem:
            scores.append(_error(detector, sample.key, f"the picture cannot be read: {problem}"))
    return scores + _found(detector, read)


def _found(detector: Detector, read: Sequence[tuple[Sample, Image.Image]]) -> list[Score]:
    """Scores of pictures; if the detector fails on several at once, one by one, so that each bears its own error."""
    if not read:
        return []
    try:
        findings = list(detector.score([picture for _, picture in read]))
        if len(findings) != len(read):
            raise ValueError(f"it gave {len(findings)} scores for {len(read)} pictures")
    except Exception as problem:
        if len(read) > 1:
            return [score for each in read for score in _found(detector, [each])]
        return [_error(detector, read[0][0].key, f"{type(problem).__name__}: {problem}")]
    return [_score(detector, sample.key, found) for (sample, _), found in zip(read, findings, strict=True)]


def _score(detector: Detector, key: str, found: Finding) -> Score:
    if found.flagged is None:
        return _error(detector, key, found.error or "the detector failed and did not say how")
    scores = {str(name): float(value) for name, value in found.scores.items()}
    return Score(
        key, detector.name, bool(found.flagged), scores, detector.version, detector.weights, found.error
    )


def _error(detector: Detector, key: str, error: str) -> Score:
    return Score(key, detector.name, None, {}, detector.version, detector.weights, error[:1000])


def picture_of(folder: RunFolder, sample: Sample) -> Image.Image:
    """The picture of a sample as it was shown.

    Raises:
        OSError: one of ``UNREADABLE``: the file is missing, broken, or no PNG.
    """
    with Image.open(folder.picture_of(sample), formats=["PNG"]) as picture:
        return picture.convert("RGB")


def detectors_named(names: Sequence[str]) -> list[Any]:
    """Detectors by the names of their conventions; a text may hold several, with commas between.

    Raises:
        ConfigurationError: one is unknown, or its weights are not there.
    """
    from sldcore.evaluation.detectors import detector_named

    asked = [part.strip() for name in names for part in name.split(",") if part.strip()]
    return [detector_named(name) for name in dict.fromkeys(asked)]
