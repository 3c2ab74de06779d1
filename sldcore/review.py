"""From what was found out about a picture to what is shown of it, and the report that says so."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray
from PIL import Image

from sldcore.errors import SafetyFailure
from sldcore.filters import actions
from sldcore.filters.base import PictureContext
from sldcore.filters.chain import Chain, Findings
from sldcore.frames import Pixels, is_video
from sldcore.policy import Action, FilterUse, PromptFilterUse, SafetyPolicy
from sldcore.types import Box, Failure, Report, Verdict

logger = logging.getLogger("sldcore")

CHECKER: Final = FilterUse(use="safety-checker")
"""The pipeline's own safety checker, as if the policy named it: what it flags goes black."""


MARKED: Final = ("none", "flag", "blur", "pixelate")
"""Actions after which a generated picture is shown, whole or in part, and bears its marks."""


@dataclass(slots=True)
class Made:
    """One picture as it was made, [H, W, 3] in 0..1, or video [F, H, W, 3], and what is known of it.

    It has not been acted upon.
    """

    pixels: NDArray[np.float32]
    report: Report
    findings: Findings
    context: PictureContext


def action_of(use: PromptFilterUse) -> Action:
    """What a use does with what it flags."""
    action: Any = use.on_flag
    return action if isinstance(action, Action) else Action(do=action)


def blocking(failures: Sequence[Failure], policy: SafetyPolicy) -> bool:
    """Whether failures withhold the picture.

    Raises:
        SafetyFailure: the policy, or the use that failed, says ``on_error: raise``.
    """
    for failure in failures:
        if (failure.on_error or policy.on_error) == "raise":
            raise SafetyFailure(f"{failure.source}: {failure.error} (policy '{policy.name}')")
    return any(failure.on_error != "allow" for failure in failures)


def decide(report: Report, findings: Findings, policy: SafetyPolicy) -> Report:
    """The report with verdicts, errors and the action that is taken if nothing else is tried.

    Raises:
        SafetyFailure: as :func:`blocking`.
    """
    report = replace(report, verdicts=tuple(findings.verdicts), errors=tuple(findings.failures))
    if report.errors:
        first, withheld = report.errors[0], blocking(report.errors, policy)
        fate = "is withheld" if withheld else "is shown unreviewed, as its policy allows"
        logger.warning("picture of seed %s %s: %s: %s", report.seed, fate, first.source, first.error)
        if withheld:
            return replace(report, action="block")
    wanted = actions.strictest(action_of(use).final for use, _ in findings.flagged_by)
    return replace(report, action=wanted.do if wanted else "none")


def picture_of(made: Made, policy: SafetyPolicy, as_array: bool) -> Any:
    """What is shown of one picture: a PIL picture or an array [H, W, 3], None if it is dropped.

    Of a video, a list of PIL pictures or an array [F, H, W, 3]: the action is that of all its frames.

    Raises:
        SafetyFailure: the action is ``raise``.
    """
    do = made.report.action
    if do in ("none", "flag") and as_array:
        return made.pixels
    if do == "raise":
        raise SafetyFailure(
            f"{reason_of(made.findings)} (policy '{policy.name}', prompt '{made.report.prompt:.60}')"
        )
    pictures = as_pictures(made.pixels)
    if do == "block":
        shown: list[Image.Image] | None = _black(pictures)
    elif do in ("none", "flag"):
        shown = pictures
    else:
        shown = _covered(made, pictures)
    return None if shown is None else _given(shown, made, as_array)


def _given(pictures: list[Image.Image], made: Made, as_array: bool) -> Any:
    """One picture, or all of a video, in the form that was asked for."""
    if as_array:
        arrays = [as_pixels(picture) for picture in pictures]
        return np.stack(arrays) if is_video(made.pixels) else arrays[0]
    return pictures if is_video(made.pixels) else pictures[0]


def _black(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    return [Image.new("RGB", picture.size) for picture in pictures]


def _covered(made: Made, pictures: list[Image.Image]) -> list[Image.Image] | None:
    """The pictures after their action, None if they are dropped; withheld if that fails."""
    try:
        action, boxes = _covering(made.findings, made.report.action)
        covered = [actions.apply(action, picture, boxes, reason_of(made.findings)) for picture in pictures]
        kept = [picture for picture in covered if picture is not None]
        return kept if len(kept) == len(pictures) else None
    except Exception as error:
        failure = Failure("action", "", f"{type(error).__name__}: {error}")
        made.report = replace(made.report, action="block", errors=(*made.report.errors, failure))
        return _black(pictures)


def reason_of(findings: Findings) -> str:
    """Which filters flagged the picture, for what."""
    reasons = []
    for _, verdict in findings.flagged_by:
        categories = ", ".join(verdict.above)
        reasons.append(f"{verdict.filter}{f' ({categories})' if categories else ''}")
    return "flagged by " + "; ".join(reasons) if reasons else ""


def mark(chain: Chain, made: Sequence[Made], pictures: list[Any], as_array: bool) -> None:
    """Put the policies' marks on pictures that are shown, in place; what cannot be marked is withheld.

    Raises:
        SafetyFailure: a mark failed and its policy says ``on_error: raise``.
    """
    wanted = [i for i, each in enumerate(made) if each.context.policy.marks and each.report.action in MARKED]
    given = {index: _pil_pictures(pictures[index]) for index in wanted}
    contexts = [made[index].context for index in wanted for _ in given[index]]
    answers = iter(chain.marked([picture for own in given.values() for picture in own], contexts))
    for index, own in given.items():
        each, policy = made[index], made[index].context.policy
        marked = [next(answers) for _ in own]
        failures = [answer for answer in marked if isinstance(answer, Failure)]
        if failures:
            each.findings.failures.append(failures[0])
            each.report = decide(each.report, each.findings, policy)
            shown = _black(own)
        else:
            later = chain.file_marks(policy)
            marks = tuple(use.use for use in policy.marks if use.use not in later)
            each.report = replace(each.report, marks=marks)
            shown = [answer for answer in marked if not isinstance(answer, Failure)]
        pictures[index] = _given(shown, each, as_array)


def _pil_pictures(shown: Any) -> list[Image.Image]:
    """What is shown of one picture or video as PIL pictures."""
    if isinstance(shown, Image.Image):
        return [shown]
    return list(shown) if isinstance(shown, list) else as_pictures(shown)


def as_pictures(pixels: Pixels) -> list[Image.Image]:
    """A picture [H, W, 3] or the frames of a video [F, H, W, 3], in 0..1, as pictures."""
    return [as_pil(frame) for frame in (pixels if is_video(pixels) else pixels[None])]


def as_pil(pixels: NDArray[np.float32]) -> Image.Image:
    """[H, W, 3] in 0..1 as a picture."""
    picture: Image.Image
    (picture,) = VaeImageProcessor.numpy_to_pil(pixels)
    return picture


def as_pixels(picture: Image.Image) -> NDArray[np.float32]:
    """A picture as [H, W, 3] in 0..1."""
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / np.float32(255)


def _covering(findings: Findings, do: str) -> tuple[Action, tuple[Box, ...]]:
    """The action to apply, and where.

    Boxes only if every use that covers the picture asks for boxes and has some: what a milder action would have covered is
    covered too.
    """
    covering = [
        (action, _boxes(verdict))
        for action, verdict in ((action_of(use).final, verdict) for use, verdict in findings.flagged_by)
        if action.do != "flag"
    ]
    everywhere = any(action.area == "whole" or not boxes for action, boxes in covering)
    action = next(action for action, _ in covering if action.do == do)
    return action, () if everywhere else tuple(box for _, boxes in covering for box in boxes)


def _boxes(verdict: Verdict) -> tuple[Box, ...]:
    """Where the verdict's flagged categories are; all boxes if it does not say which are flagged."""
    return tuple(box for box in verdict.boxes if not verdict.above or box.category in verdict.above)
