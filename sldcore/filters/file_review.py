"""Picture files reviewed with a policy's filters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from PIL import Image

from sldcore import __version__
from sldcore.filters.chain import Findings
from sldcore.filters.picture_files import views
from sldcore.filters.picture_review import PictureReview, categories_of, judged_report
from sldcore.policy import SafetyPolicy
from sldcore.types import Failure, Report

MOST_PIXELS: Final = 2**24
"""Pixels that wait for their review together, unless one picture alone has more."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """One picture of a file and what the filters say. ``picture`` is None if the file could not be decoded.

    ``report.action`` is what the policy does with such a picture when it has no further attempts; ``block`` if a filter failed.
    ``report.prompt`` is empty. ``categories`` are those for which it was flagged, by filters that act.
    """

    file: Path
    view: str
    picture: Image.Image | None
    report: Report
    categories: tuple[str, ...] = ()

    @property
    def outcome(self) -> Literal["clean", "flagged", "failed"]:
        """``failed`` if anything kept it from being reviewed, flagged beside that or not."""
        if self.report.errors:
            return "failed"
        return "flagged" if self.report.flagged else "clean"

    @property
    def name(self) -> str:
        """The file, and which picture of it."""
        return f"{self.file} ({self.view})" if self.view else str(self.file)


class FileReview:
    """The filters of one policy, made once for any number of files.

    ``on_error`` does not matter here: what could not be reviewed has failed.

    Raises:
        PolicyError: The policy has no filters.
        ConfigurationError: A filter cannot be had or made.
    """

    def __init__(self, policy: SafetyPolicy) -> None:
        self.policy = policy
        self._review = PictureReview(policy)

    def files(self, files: Sequence[Path], batch_size: int = 8) -> Iterator[Reviewed]:
        """Every picture of the files, in order; at most ``batch_size`` of one size are reviewed together."""
        waiting: list[Reviewed] = []
        pixels = 0
        for file in files:
            for each in self._decoded(file):
                waiting.append(each)
                pixels += each.picture.width * each.picture.height if each.picture is not None else 0
                if len(waiting) >= batch_size or pixels >= MOST_PIXELS:
                    yield from self._reviewed(waiting)
                    waiting, pixels = [], 0
        yield from self._reviewed(waiting)

    def _decoded(self, file: Path) -> Iterator[Reviewed]:
        report = self._review.blank
        try:
            for view in views(file):
                yield Reviewed(file, view.name, view.picture, report)
        except Exception as problem:  # decoders raise all sorts of things over broken files
            yield Reviewed(file, "", None, replace(report, errors=(unreadable(problem),), action="block"))

    def _reviewed(self, pictures: Sequence[Reviewed]) -> list[Reviewed]:
        shown = [each.picture for each in pictures if each.picture is not None]
        found = iter(self._review.findings(shown))
        return [each if each.picture is None else self._judged(each, next(found)) for each in pictures]

    def _judged(self, picture: Reviewed, findings: Findings) -> Reviewed:
        report = judged_report(picture.report, findings, self.policy)
        return replace(picture, report=report, categories=categories_of(findings))


def unreadable(problem: Exception) -> Failure:
    """What is said of a picture file that could not be decoded."""
    return Failure("picture file", __version__, f"{type(problem).__name__}: {problem}")
