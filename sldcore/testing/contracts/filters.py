"""The contracts of filters: reviews of pictures and of prompts."""

# ruff: noqa: D102  (the name of a test is its documentation)

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from math import isfinite
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sldcore.concepts import resolve
from sldcore.contributions import MarkKind, PostFilterKind, PromptFilterKind
from sldcore.filters.base import Mark, PictureContext, PostFilter, PromptContext, PromptFilter
from sldcore.policy import SafetyPolicy
from sldcore.testing.contracts.base import NamedContract, require
from sldcore.types import Verdict

CLOSE: Final = 1e-3
"""Largest difference of two scores that count as the same; batches are summed in another order than single pictures."""

PROMPTS: Final = (
    "a red knight on a meadow",
    "",
    " \n\t ",
    "ein Zwerg mit Bürste · 雪の中の猫 · قارب \U0001f3f0",
    "a crowd at night, " * 500,
    "\u202eright to left\u202c \u200b\ufeff",
)


class ReviewContract(NamedContract):
    """What filters of pictures and of prompts have in common.

    Attributes:
        items: what is reviewed; a method or attribute. Left out, pictures or prompts of all sorts.
        flagged: items that must be flagged; none if left out.
        clean: items that must not be flagged; none if left out.
    """

    items: Any = None
    flagged: Any = ()
    clean: Any = ()
    what: ClassVar[str]

    def make(self) -> Any:
        """A new filter."""
        return self.subject.create(self.checked_options)

    def use(self, made: Any) -> int:
        """One review."""
        self.review(made, self.samples())
        return 1

    def review(self, made: Any, items: Sequence[Any]) -> list[Verdict]:
        """The verdicts on ``items``."""
        raise NotImplementedError

    def defaults(self) -> Sequence[Any]:
        """What is reviewed if the author gives no items."""
        raise NotImplementedError

    def unreadable(self) -> Iterable[tuple[str, Any]]:
        """Things that no filter can read, with a name each."""
        raise NotImplementedError

    def samples(self) -> list[Any]:
        """What is reviewed; new objects at every call."""
        return [
            *(self._given(self.items) or self.defaults()),
            *self._given(self.flagged),
            *self._given(self.clean),
        ]

    @staticmethod
    def _given(items: Any) -> list[Any]:
        return list(items() if callable(items) else items or ())

    def test_there_is_one_verdict_for_each(self) -> None:
        items = self.samples()
        for some in (items, items[:1], items[::-1]):
            verdicts = self.review(self.make(), some)
            require(
                len(verdicts) == len(some),
                f"{len(verdicts)} verdicts on {len(some)} {self.what}s; give one each",
            )

    def test_nothing_gives_no_verdict(self) -> None:
        verdicts = self.review(self.make(), [])
        require(verdicts == [], f"no {self.what}s give {len(verdicts)} verdicts")

    def test_verdicts_are_well_formed(self) -> None:
        made = self.make()
        for verdict in self.review(made, self.samples()):
            require(isinstance(verdict, Verdict), f"{verdict!r} is not a sldcore.types.Verdict")
            require(
                isinstance(verdict.flagged, bool | np.bool_),
                f"flagged is {verdict.flagged!r}, not True or False",
            )
            require(
                (verdict.filter, verdict.version) == (made.name, made.version),
                f"a verdict of {made.name} {made.version} says that it is of {verdict.filter} {verdict.version}",
            )
            require(isinstance(verdict.reason, str), f"the reason is {verdict.reason!r}, not a text")

    def test_scores_and_thresholds_are_numbers_from_0_to_1(self) -> None:
        for verdict in self.review(self.make(), self.samples()):
            for what, values in (("score", verdict.scores), ("threshold", verdict.thresholds)):
                for name, value in values.items():
                    number = isinstance(value, int | float) and not isinstance(value, bool)
                    good = number and isfinite(value) and 0 <= value <= 1
                    require(good, f"the {what} of '{name}' is {value!r}; it must be a number in 0..1")

    def test_flagged_agrees_with_scores_and_thresholds(self) -> None:
        for verdict in self.review(self.make(), self.samples()):
            judged = {name: limit for name, limit in verdict.thresholds.items() if name in verdict.scores}
            over = [name for name, limit in judged.items() if verdict.scores[name] > limit]
            below = judged and all(verdict.scores[name] < limit for name, limit in judged.items())
            detail = f"scores {dict(verdict.scores)}, thresholds {dict(verdict.thresholds)}"
            require(
                verdict.flagged or not over,
                f"not flagged, although {over} are above their thresholds: {detail}",
            )
            require(
                not verdict.flagged or not below,
                f"flagged, although no score reaches its threshold: {detail}",
            )

    def test_what_must_be_flagged_is(self) -> None:
        items = self._given(self.flagged)
        for number, verdict in enumerate(self.review(self.make(), items) if items else ()):
            require(
                verdict.flagged, f"{self.what} {number} of 'flagged' is not flagged: {dict(verdict.scores)}"
            )

    def test_what_is_clean_is_not_flagged(self) -> None:
        items = self._given(self.clean)
        for number, verdict in enumerate(self.review(self.make(), items) if items else ()):
            require(not verdict.flagged, f"{self.what} {number} of 'clean' is flagged: {verdict}")

    def test_what_cannot_be_read_is_never_called_clean(self) -> None:
        for name, item in self.unreadable():
            for items in ([item], [self.samples()[0], item]):
                try:
                    verdicts = self.review(self.make(), items)
                except Exception:  # the host withholds the picture, or refuses the prompt
                    continue
                require(
                    len(verdicts) == len(items) and verdicts[-1].flagged,
                    f"{name} is called clean; raise, or flag it",
                )

    def test_the_same_input_gives_the_same_verdicts(self) -> None:
        one, two = self.review(self.make(), self.samples()), self.review(self.make(), self.samples())
        require(one == two, f"two reviews of the same {self.what}s differ: {_difference(one, two)}")

    def test_one_alone_is_judged_as_in_a_batch(self) -> None:
        together = self.review(self.make(), self.samples())
        for number, verdict in enumerate(together):
            (alone,) = self.review(self.make(), [self.samples()[number]])
            require(
                _alike(alone, verdict), f"{self.what} {number} alone is judged {alone}, in a batch {verdict}"
            )

    def test_the_order_of_a_batch_does_not_matter(self) -> None:
        forwards = self.review(self.make(), self.samples())
        backwards = self.review(self.make(), self.samples()[::-1])[::-1]
        if len(forwards) == len(backwards) == len(self.samples()):
            for number, (one, two) in enumerate(zip(forwards, backwards, strict=True)):
                require(_alike(one, two), f"{self.what} {number} is judged {one}, in reverse order {two}")

    def test_a_review_leaves_nothing_behind(self) -> None:
        made = self.make()
        one, two = self.review(made, self.samples()), self.review(made, self.samples())
        require(one == two, f"the second review by the same filter differs: {_difference(one, two)}")

    def test_two_reviews_at_once_do_not_disturb_each_other(self) -> None:
        made, items = self.make(), self.samples()
        orders = [items, items[::-1]]
        expected = [self.review(self.make(), order) for order in orders]
        with ThreadPoolExecutor(len(orders)) as pool:
            found = list(pool.map(lambda order: self.review(made, order), orders * 2))
        for one, two in zip(found, expected * 2, strict=True):
            require(all(map(_alike, one, two)), f"reviews on several threads differ: {_difference(one, two)}")


class PostFilterContract(ReviewContract):
    """For :class:`sldcore.contributions.PostFilterKind`; items are RGB pictures."""

    kind = PostFilterKind
    protocol = PostFilter
    what = "picture"

    def review(self, made: Any, items: Sequence[Any]) -> list[Verdict]:
        """The verdicts on pictures."""
        contexts = [PictureContext("a red knight", seed, SafetyPolicy()) for seed, _ in enumerate(items)]
        return list(made.review(items, contexts))

    def defaults(self) -> Sequence[Image.Image]:
        """Noise, a ramp, black, white and one colour, 64 x 64."""
        ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3)
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
        colour = np.full((64, 64, 3), (200, 40, 60))
        flat = [np.full((64, 64, 3), value) for value in (0, 255)]
        return [Image.fromarray(pixels.astype(np.uint8)) for pixels in (noise, ramp, colour, *flat)]

    def unreadable(self) -> Iterable[tuple[str, Any]]:
        """A picture whose data ends too early, a closed one, and none at all."""
        data = BytesIO()
        noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(data, "PNG")
        yield "a picture whose data ends in the middle", Image.open(BytesIO(data.getvalue()[:3000]))
        closed = Image.fromarray(noise)
        closed.close()
        yield "a picture that is closed", closed
        yield "None in place of a picture", None

    def test_pictures_are_not_changed(self) -> None:
        items = self.samples()
        before = [item.tobytes() for item in items]
        self.review(self.make(), items)
        require([item.tobytes() for item in items] == before, "review() changes the pictures; work on a copy")

    def test_pictures_of_any_shape_are_judged(self) -> None:
        noise = np.random.default_rng(2).integers(0, 256, (96, 48, 3), dtype=np.uint8)
        verdicts = self.review(self.make(), [Image.fromarray(noise)])
        require(len(verdicts) == 1, f"{len(verdicts)} verdicts on one picture of 48 x 96")


class PromptFilterContract(ReviewContract):
    """For :class:`sldcore.contributions.PromptFilterKind`; items are prompts."""

    kind = PromptFilterKind
    protocol = PromptFilter
    what = "prompt"

    def review(self, made: Any, items: Sequence[Any]) -> list[Verdict]:
        """The verdicts on prompts."""
        policy = SafetyPolicy.preset("medium")
        texts = {
            concept.id: (concept.text,) for concept in (used.concept for used in resolve(policy.concepts))
        }
        contexts = [PromptContext(policy, texts, _vectors) for _ in items]
        return list(made.review(items, contexts))

    def defaults(self) -> Sequence[str]:
        """Short, empty, blank, long, and in several scripts."""
        return PROMPTS

    def unreadable(self) -> Iterable[tuple[str, Any]]:
        """Something that is no prompt."""
        yield "None in place of a prompt", None

    def test_prompts_are_not_changed(self) -> None:
        items = self.samples()
        given = list(items)
        self.review(self.make(), given)
        require(given == items, "review() changes the list of prompts; work on a copy")


class MarkContract(NamedContract):
    """For :class:`sldcore.contributions.MarkKind`."""

    kind = MarkKind
    protocol = Mark

    def make(self) -> Any:
        """A new mark."""
        return self.subject.create(self.checked_options)

    def use(self, made: Any) -> int:
        """One call."""
        self.marked(made, self.pictures())
        return 1

    def pictures(self) -> list[Image.Image]:
        """Noise and a flat colour, 320 x 256."""
        noise = np.random.default_rng(3).integers(0, 256, (256, 320, 3), dtype=np.uint8)
        return [Image.fromarray(noise), Image.new("RGB", (320, 256), (90, 120, 160))]

    def marked(self, made: Any, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """The marked pictures."""
        contexts = [PictureContext("a red knight", seed, SafetyPolicy()) for seed, _ in enumerate(pictures)]
        return list(made.mark(pictures, contexts))

    def test_there_is_one_marked_picture_of_the_same_size_for_each(self) -> None:
        pictures = self.pictures()
        marked = self.marked(self.make(), pictures)
        require(len(marked) == len(pictures), f"{len(marked)} pictures for {len(pictures)}")
        sizes = [picture.size for picture in marked]
        require(sizes == [picture.size for picture in pictures], f"a mark must keep sizes, got {sizes}")

    def test_no_pictures_are_no_pictures(self) -> None:
        require(self.marked(self.make(), []) == [], "mark() of no pictures must give none")

    def test_a_mark_leaves_its_input_alone(self) -> None:
        pictures = self.pictures()
        before = [picture.tobytes() for picture in pictures]
        self.marked(self.make(), pictures)
        require(
            [each.tobytes() for each in pictures] == before,
            "mark() paints on what it is given; work on a copy",
        )

    def test_a_mark_changes_the_picture(self) -> None:
        pictures = self.pictures()
        marked = self.marked(self.make(), pictures)
        same = [
            one.convert("RGB").tobytes() == two.tobytes() for one, two in zip(marked, pictures, strict=True)
        ]
        require(not any(same), "mark() gives a picture back as it was: it bears no mark")

    def test_the_same_picture_is_marked_the_same(self) -> None:
        one, two = (self.marked(self.make(), self.pictures()) for _ in range(2))
        same = [a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True)]
        require(all(same), "mark() of the same pictures differs from call to call")


def _vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """Stands in for a text encoder: counts of letters, length one, and never zero."""
    counts = np.array(
        [[1 + text.count(chr(97 + letter)) for letter in range(26)] for text in texts], np.float32
    )
    counts = counts.reshape(-1, 26)
    unit: NDArray[np.float32] = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    return unit


def _alike(one: Verdict, two: Verdict) -> bool:
    """The same up to rounding; at a threshold, rounding may decide."""
    if one.scores.keys() != two.scores.keys():
        return False
    close = all(abs(one.scores[name] - two.scores[name]) <= CLOSE for name in one.scores)
    shared = one.thresholds.keys() & one.scores.keys()
    edge = any(abs(one.scores[name] - one.thresholds[name]) <= CLOSE for name in shared)
    return close and (one.flagged == two.flagged or edge)


def _difference(one: Sequence[Verdict], two: Sequence[Verdict]) -> str:
    pairs = [f"{a} and {b}" for a, b in zip(one, two, strict=False) if a != b]
    return pairs[0] if pairs else f"{len(one)} and {len(two)} verdicts"
