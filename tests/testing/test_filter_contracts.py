"""Filters that are wrong in one way fail the test that is meant for it, and no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sldcore.contributions import PostFilterKind, PromptFilterKind
from sldcore.testing.check import case_of, outcomes
from sldcore.types import Verdict

WELL_FORMED = "test_verdicts_are_well_formed"
SCORES = "test_scores_and_thresholds_are_numbers_from_0_to_1"
AGREES = "test_flagged_agrees_with_scores_and_thresholds"
UNREADABLE = "test_what_cannot_be_read_is_never_called_clean"
ONE_EACH = "test_there_is_one_verdict_for_each"
NOTHING = "test_nothing_gives_no_verdict"
ALONE = "test_one_alone_is_judged_as_in_a_batch"
ORDER = "test_the_order_of_a_batch_does_not_matter"
AGAIN = "test_a_review_leaves_nothing_behind"
AT_ONCE = "test_two_reviews_at_once_do_not_disturb_each_other"
SAME = "test_the_same_input_gives_the_same_verdicts"
UNCHANGED = "test_pictures_are_not_changed"


class Dark:
    """Flags dark pictures: a correct filter."""

    name = "dark"
    version = "1.0"
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.number = self.made
        self.reviews = 0

    def score(self, picture: Any) -> float:
        return 1 - float(np.asarray(picture.convert("RGB")).mean()) / 255

    def verdict(self, score: float) -> Verdict:
        return Verdict(self.name, self.version, score >= 0.9, {"dark": score}, {"dark": 0.9})

    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> Sequence[Verdict]:
        return [self.verdict(self.score(picture)) for picture in pictures]


def failing(made: Any, **attributes: Any) -> set[str]:
    kind = PostFilterKind(name="dark", create=lambda options: made())
    return {outcome.test for outcome in outcomes(case_of(kind, **attributes)) if outcome.failure}


def saying(change: Callable[[Verdict], Any]) -> type[Dark]:
    """A filter whose verdicts are changed."""

    class Changed(Dark):
        def verdict(self, score: float) -> Any:
            return change(super().verdict(score))

    return Changed


class SaysCleanOfTheUnreadable(Dark):
    def score(self, picture: Any) -> float:
        try:
            return super().score(picture)
        except Exception:
            return 0.0


class LeavesUnreadableOut(Dark):
    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> Sequence[Verdict]:
        readable = []
        for picture in pictures:
            try:
                picture.load()
                readable.append(picture)
            except Exception:
                continue
        return super().review(readable, contexts)


class OneForAll(Dark):
    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> Sequence[Verdict]:
        return super().review(pictures, contexts)[:1]


class SpeaksOfNothing(Dark):
    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> Sequence[Verdict]:
        return super().review(pictures, contexts) or [self.verdict(0.0)]


class ComparesWithTheBatch(Dark):
    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> Sequence[Verdict]:
        scores = [self.score(picture) for picture in pictures]
        return [self.verdict(score / max(scores)) if max(scores) else self.verdict(0.0) for score in scores]


class JudgesByPlace(Dark):
    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> Sequence[Verdict]:
        return [self.verdict(min(0.5, self.score(each) / (1 + n))) for n, each in enumerate(pictures)]


class PaintsOnPictures(Dark):
    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> Sequence[Verdict]:
        verdicts = super().review(pictures, contexts)
        for picture in pictures:
            picture.putpixel((0, 0), (1, 2, 3))
        return verdicts


class GetsTired(Dark):
    def verdict(self, score: float) -> Verdict:
        self.reviews += 1
        return super().verdict(score * 0.9 if self.reviews > 5 else score)


class DiffersFromObjectToObject(Dark):
    def verdict(self, score: float) -> Verdict:
        return super().verdict(min(1.0, score + 1e-6 * self.number))


class TakesSquaresOnly(Dark):
    def score(self, picture: Any) -> float:
        if picture.width != picture.height:
            raise ValueError("pictures must be square")
        return super().score(picture)


BROKEN: dict[str, tuple[type[Dark], set[str]]] = {
    "a score above 1": (saying(lambda v: replace(v, scores={"dark": 1.5}, thresholds={})), {SCORES}),
    "a score that is a tensor's cousin": (
        saying(lambda v: replace(v, scores={"dark": "0.5"}, thresholds={})),
        {SCORES, ALONE, ORDER, AT_ONCE},
    ),
    "a threshold above 1": (saying(lambda v: replace(v, thresholds={"light": 2.0})), {SCORES}),
    "flags below the threshold": (saying(lambda v: replace(v, flagged=True)), {AGREES}),
    "does not flag above the threshold": (saying(lambda v: replace(v, flagged=False)), {AGREES}),
    "flagged is a number": (saying(lambda v: replace(v, flagged=int(v.flagged))), {WELL_FORMED}),
    "speaks in another's name": (saying(lambda v: replace(v, filter="light")), {WELL_FORMED}),
    "says clean of what it cannot read": (SaysCleanOfTheUnreadable, {UNREADABLE}),
    "leaves out what it cannot read": (LeavesUnreadableOut, {UNREADABLE}),
    "one verdict for all": (OneForAll, {ONE_EACH}),
    "a verdict on nothing": (SpeaksOfNothing, {NOTHING}),
    "compares with the batch": (ComparesWithTheBatch, {ALONE}),
    "judges by the place": (JudgesByPlace, {ALONE, ORDER}),
    "paints on the pictures": (PaintsOnPictures, {UNCHANGED}),
    "keeps count of what it saw": (GetsTired, {AGAIN, AT_ONCE}),
    "differs from object to object": (DiffersFromObjectToObject, {SAME}),
    "takes squares only": (TakesSquaresOnly, {"test_pictures_of_any_shape_are_judged"}),
}


def test_a_correct_filter_passes() -> None:
    assert failing(Dark) == set()


@pytest.mark.parametrize(("made", "tests"), BROKEN.values(), ids=BROKEN)
def test_a_broken_filter_fails_the_test_that_is_meant_for_it(made: type[Dark], tests: set[str]) -> None:
    assert failing(made) == tests


def test_pictures_that_must_be_flagged_are_looked_at() -> None:
    white = [Image.new("RGB", (8, 8), "white")]
    assert failing(Dark, flagged=white) == {"test_what_must_be_flagged_is"}


def test_pictures_that_are_clean_are_looked_at() -> None:
    black = [Image.new("RGB", (8, 8), "black")]
    assert failing(Dark, clean=black) == {"test_what_is_clean_is_not_flagged"}


class Shouting:
    """Flags capitals: a correct prompt filter."""

    name = "shouting"
    version = "1.0"

    def flags(self, prompt: str) -> bool:
        return prompt.isupper()

    def review(self, prompts: Sequence[str], contexts: Any) -> Sequence[Verdict]:
        return [Verdict(self.name, self.version, self.flags(prompt)) for prompt in prompts]


class ReadsAnything(Shouting):
    def flags(self, prompt: Any) -> bool:
        return str(prompt).isupper()


class LowersPrompts(Shouting):
    def review(self, prompts: Any, contexts: Any) -> Sequence[Verdict]:
        verdicts = super().review(prompts, contexts)
        prompts[:] = [prompt.lower() + "." for prompt in prompts]
        return verdicts


def failing_prompts(made: type[Shouting], **attributes: Any) -> set[str]:
    kind = PromptFilterKind(name="shouting", create=lambda options: made())
    return {outcome.test for outcome in outcomes(case_of(kind, **attributes)) if outcome.failure}


def test_a_correct_prompt_filter_passes() -> None:
    assert failing_prompts(Shouting, flagged=["STOP"], clean=["go"]) == set()


def test_a_prompt_filter_that_reads_anything_fails() -> None:
    assert failing_prompts(ReadsAnything) == {UNREADABLE}


def test_a_prompt_filter_that_changes_prompts_fails() -> None:
    assert failing_prompts(LowersPrompts) == {"test_prompts_are_not_changed"}


def test_a_prompt_that_must_be_flagged_is_looked_at() -> None:
    assert failing_prompts(Shouting, flagged=lambda self: ["quiet"]) == {"test_what_must_be_flagged_is"}
