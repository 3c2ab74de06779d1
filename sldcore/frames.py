"""Videos as pictures: what a pipeline returned, frame by frame, and what is said of a video from what is said of its frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sldcore.errors import SafetyFailure
from sldcore.filters.chain import Findings
from sldcore.types import Failure, Verdict

Pixels = NDArray[np.float32]
"""A picture [H, W, 3] or a video [F, H, W, 3], in 0..1."""


def is_video(pixels: Pixels) -> bool:
    """Whether these are the frames of a video."""
    return pixels.ndim == 4


def pixels_of(output: Any, expected: int) -> list[Pixels]:
    """What a pipeline returned for each sample.

    Raises:
        SafetyFailure: it is not one picture or video for each of the ``expected`` samples.
    """
    made = getattr(output, "images", None)
    made = getattr(output, "frames", None) if made is None else made
    if made is None:
        raise SafetyFailure(
            f"the pipeline returned {type(output).__name__}, which has neither images nor frames; nothing is shown"
        )
    pixels = [np.asarray(each, dtype=np.float32) for each in made]
    if len(pixels) != expected:
        raise SafetyFailure(
            f"the pipeline returned {len(pixels)} pictures for {expected} samples; none is shown"
        )
    if odd := [
        each.shape for each in pixels if each.ndim not in (3, 4) or each.shape[-1] != 3 or not each.size
    ]:
        raise SafetyFailure(
            f"the pipeline returned arrays of shape {odd[0]}, which are not pictures [H, W, 3] or videos [F, H, W, 3]; "
            f"nothing is shown"
        )
    return pixels


def over_frames(frames: Sequence[Findings]) -> Findings:
    """What is said of a video: of each filter, its word on the frame that it finds worst, with the boxes of all frames."""
    if len(frames) == 1:
        return frames[0]
    by_filter: dict[Any, list[tuple[int, Verdict]]] = {}
    flagged: list[tuple[Any, list[tuple[int, Verdict]]]] = []
    failures: dict[tuple[str, str], Failure] = {}
    for number, found in enumerate(frames):
        for verdict in found.verdicts:
            by_filter.setdefault(_identity(verdict), []).append((number, verdict))
        for use, verdict in found.flagged_by:
            same = next((words for other, words in flagged if other == use), None)
            if same is None:
                flagged.append((use, [(number, verdict)]))
            else:
                same.append((number, verdict))
        for failure in found.failures:
            failures.setdefault((failure.source, failure.error), failure)
    total = len(frames)
    return Findings(
        verdicts=[_worst(words, total) for words in by_filter.values()],
        failures=list(failures.values()),
        flagged_by=[(use, _worst(words, total)) for use, words in flagged],
    )


def _identity(verdict: Verdict) -> Any:
    """What tells the words of one filter about several frames from those of another, or of another use of it."""
    return verdict.filter, verdict.version, tuple(sorted(verdict.thresholds.items())), verdict.shadow


def _worst(words: Sequence[tuple[int, Verdict]], frames: int) -> Verdict:
    number, worst = max(words, key=lambda word: (word[1].flagged, max(word[1].scores.values(), default=0.0)))
    verdicts = [verdict for _, verdict in words]
    where = f"frame {number + 1} of {frames}"
    return replace(
        worst,
        reason=f"{worst.reason} ({where})" if worst.reason else where if worst.flagged else "",
        boxes=tuple(dict.fromkeys(box for verdict in verdicts if verdict.flagged for box in verdict.boxes)),
        seconds=sum(verdict.seconds for verdict in verdicts),
    )


def all_frames(pixels: Iterable[Pixels]) -> tuple[Pixels, list[int]]:
    """Every picture and every frame, [N, H, W, 3], and how many of them each sample has."""
    stacks = [each if is_video(each) else each[None] for each in pixels]
    return np.concatenate(stacks), [len(stack) for stack in stacks]
