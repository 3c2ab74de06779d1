"""Existing pictures reviewed with a policy's filters: the chain that reviews what the engine makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from sldcore import __version__
from sldcore.catalogue import using
from sldcore.concepts import resolve
from sldcore.errors import PolicyError
from sldcore.filters.base import PictureContext
from sldcore.filters.chain import Chain, Findings
from sldcore.filters.picture_files import views
from sldcore.policy import SafetyPolicy
from sldcore.resolution import catalogue_for
from sldcore.review import decide
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
        if not policy.filters:
            raise PolicyError(
                f"policy '{policy.name}' has no filters, so nothing would be reviewed; add some, such as "
                f"`filters: [opennsfw]` (`sld filters list` shows what there is)"
            )
        self.policy = policy
        # Prompt filters and marks have no part in this, and may have weights to load.
        self._policy = policy.replace(prompt_filters=(), marks=())
        self._catalogue = catalogue_for([policy])
        self._chain = Chain()
        with using(self._catalogue):
            self._chain.prepare([self._policy])
            used = [each.concept for each in resolve(policy.concepts)]
        self._concepts: Mapping[str, tuple[str, ...]] = {concept.id: (concept.text,) for concept in used}

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
        report = Report("", None, self.policy.name, self.policy.digest, self._concepts)
        try:
            for view in views(file):
                yield Reviewed(file, view.name, view.picture, report)
        except Exception as problem:  # decoders raise all sorts of things over broken files
            failure = Failure("picture file", __version__, f"{type(problem).__name__}: {problem}")
            yield Reviewed(file, "", None, replace(report, errors=(failure,), action="block"))

    def _reviewed(self, pictures: Sequence[Reviewed]) -> list[Reviewed]:
        done = list(pictures)
        sizes: dict[tuple[int, int], list[int]] = {}
        for index, each in enumerate(pictures):
            if each.picture is not None:
                sizes.setdefault(each.picture.size, []).append(index)
        for members in sizes.values():
            together = [shown for index in members if (shown := pictures[index].picture) is not None]
            for index, findings in zip(members, self._findings(together), strict=True):
                done[index] = self._judged(pictures[index], findings)
        return done

    def _findings(self, pictures: Sequence[Image.Image]) -> list[Findings]:
        pixels = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])  # [B, H, W, 3]
        pixels /= np.float32(255)
        context = PictureContext("", None, self._policy, self._concepts)
        with using(self._catalogue):
            return self._chain.pictures(pixels, [context] * len(pictures), [False] * len(pictures))

    def _judged(self, picture: Reviewed, findings: Findings) -> Reviewed:
        categories = tuple(
            dict.fromkeys(
                name for _, verdict in findings.flagged_by for name in verdict.above or (verdict.filter,)
            )
        )
        if findings.failures:
            report = replace(
                picture.report,
                verdicts=tuple(findings.verdicts),
                errors=tuple(findings.failures),
                action="block",
            )
        else:
            report = decide(picture.report, findings, self._policy)
        return replace(picture, report=report, categories=categories)
