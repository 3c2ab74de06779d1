"""The filters of a policy, run in its order over a batch, and never failing open.

A filter that raises, hangs, gives the wrong number of verdicts or a score that is no probability is a failure of every picture
that it was to review. What follows is the policy's: the picture is withheld unless it says otherwise in so many words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Final

import numpy as np
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray
from PIL import Image

from sldcore.contributions import Contribution
from sldcore.errors import PluginError, SafetyFailure, SLDError
from sldcore.filters import actions
from sldcore.filters.base import FileMark, Mark, PictureContext, PostFilter, PromptContext, PromptFilter
from sldcore.filters.guarding import Guarded
from sldcore.policy import PromptFilterUse, SafetyPolicy, Use
from sldcore.resolution import (
    filters_of,
    make_filter,
    make_mark,
    make_prompt_filter,
    marks_of,
    prompt_filters_of,
)
from sldcore.types import Box, Failure, Report, Verdict

MARK_SECONDS: Final = 120.0

Named = tuple[Any, Any]
"""A use of a policy and the contribution that it names."""
Key = tuple[Contribution, Any]


@dataclass(slots=True)
class Findings:
    """What filters say about one picture or prompt: verdicts and failures in the policy's order.

    ``flagged_by`` are the uses that act on a flag, with their verdicts.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    flagged_by: list[tuple[PromptFilterUse, Verdict]] = field(default_factory=list)

    @property
    def decided(self) -> bool:
        """True if something flagged it, or failed in a way that withholds it."""
        return bool(self.flagged_by) or any(failure.on_error != "allow" for failure in self.failures)

    def add(self, use: PromptFilterUse, word: Verdict | Failure) -> None:
        """Note what one filter said."""
        if isinstance(word, Failure):
            self.failures.append(word)
            return
        self.verdicts.append(word)
        if word.flagged and not word.shadow:
            self.flagged_by.append((use, word))


class Chain:
    """The filters and marks of one engine, made when a policy first names them and kept, since detectors are slow to load."""

    def __init__(self) -> None:
        self._filters: dict[Key, Guarded[PostFilter]] = {}
        self._prompt_filters: dict[Key, Guarded[PromptFilter]] = {}
        self._marks: dict[Key, Guarded[Mark]] = {}

    def prepare(self, policies: Iterable[SafetyPolicy]) -> None:
        """Make the filters and marks that ``policies`` name.

        Raises:
            ConfigurationError: one cannot be had or made, or a picture to show instead cannot be read.
        """
        for policy in policies:
            for use, kind in filters_of(policy):
                actions.check(use.on_flag)
                _keep(self._filters, use, kind, make_filter)
            for asked, prompt_kind in prompt_filters_of(policy):
                _keep(self._prompt_filters, asked, prompt_kind, make_prompt_filter)
            for mark, mark_kind in marks_of(policy):
                _keep(self._marks, mark, mark_kind, make_mark)

    def prompts(self, prompts: Sequence[str], contexts: Sequence[PromptContext]) -> list[Findings]:
        """Findings of the prompt filters, one per prompt."""
        named = _by_policy((context.policy for context in contexts), prompt_filters_of)
        uses = [named[context.policy] for context in contexts]

        def review(one: Named, members: list[int]) -> tuple[Guarded[Any], Callable[[Any], object]]:
            own, about = [prompts[index] for index in members], [contexts[index] for index in members]
            return self._prompt_filters[_key(*one)], lambda made: made.review(own, about)

        return _reviewed(uses, [False] * len(prompts), review)

    def pictures(
        self,
        pixels: NDArray[np.float32],
        contexts: Sequence[PictureContext],
        skip: Sequence[bool],
    ) -> list[Findings]:
        """Findings of the filters, one per picture; ``pixels`` [B, H, W, 3] in 0..1.

        Pictures to ``skip`` are withheld already: nothing is said about them.
        """
        named = _by_policy((context.policy for context in contexts), filters_of)
        uses = [[] if gone else named[context.policy] for context, gone in zip(contexts, skip, strict=True)]
        first = [context.policy.filter_mode == "first_flag" for context in contexts]

        def review(one: Named, members: list[int]) -> tuple[Guarded[Any], Callable[[Any], object]]:
            pictures: list[Image.Image] = VaeImageProcessor.numpy_to_pil(pixels[members])
            about = [contexts[index] for index in members]
            return self._filters[_key(*one)], lambda made: made.review(pictures, about)

        return _reviewed(uses, first, review)

    def file_marks(self, policy: SafetyPolicy) -> tuple[str, ...]:
        """Names of the policy's marks that are put on files when they are saved."""
        return tuple(
            use.use
            for use, kind in marks_of(policy)
            if isinstance(self._marks[_key(use, kind)].made, FileMark)
        )

    def signed(self, content: bytes, report: Report, policy: SafetyPolicy) -> bytes:
        """The content of a picture file with the policy's marks of files.

        Raises:
            SafetyFailure: one failed; the file must not be written.
        """
        for use, kind in marks_of(policy):
            guarded = self._marks[_key(use, kind)]
            if isinstance(guarded.made, FileMark):
                try:
                    content = _signed(guarded, content, report)
                except Exception as error:
                    failure = _failure(guarded.made, error)
                    raise SafetyFailure(
                        f"{failure.source} {failure.version}: the picture's file could not be marked: {failure.error}"
                    ) from error
        return content

    def marked(
        self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]
    ) -> list[Image.Image | Failure]:
        """The pictures with the marks of their policies, or why one could not be marked."""
        named = _by_policy((context.policy for context in contexts), marks_of)
        done: list[Image.Image | Failure] = list(pictures)
        for index, context in enumerate(contexts):
            for use, kind in named[context.policy]:
                picture = done[index]
                if not isinstance(picture, Failure):
                    done[index] = _marked(self._marks[_key(use, kind)], picture, context)
        return done


def _signed(guarded: Guarded[Any], content: bytes, report: Report) -> bytes:
    signed, _ = guarded.call(lambda made: made.mark_bytes(content, report), MARK_SECONDS)
    if not isinstance(signed, bytes) or not signed:
        raise TypeError(f"a mark of files must give bytes, got {type(signed).__name__}")
    return signed


def _marked(guarded: Guarded[Mark], picture: Image.Image, context: PictureContext) -> Image.Image | Failure:
    try:
        answer, _ = guarded.call(lambda made: made.mark([picture.copy()], [context]), MARK_SECONDS)
        marked: Any
        (marked,) = answer  # type: ignore[misc]
        if not isinstance(marked, Image.Image) or marked.size != picture.size:
            raise TypeError(f"a mark must give a picture of the same size, got {marked!r:.80}")
        return marked.convert("RGB")
    except Exception as error:
        return _failure(guarded.made, error)


def _by_policy(
    policies: Iterable[SafetyPolicy], named_by: Callable[[SafetyPolicy], Sequence[Any]]
) -> dict[SafetyPolicy, Sequence[Named]]:
    """What each policy names, looked up once for all pictures that share it."""
    return {policy: named_by(policy) for policy in dict.fromkeys(policies)}


def _key(use: Use, kind: Contribution) -> Key:
    """What decides the object: uses that only differ in thresholds or actions share one.

    The contribution counts too: a plugin file may bring another filter of the same name.
    """
    return kind, use.options


def _keep(kept: dict[Key, Guarded[Any]], use: Any, kind: Any, make: Callable[[Any, Any], Any]) -> None:
    if _key(use, kind) in kept:
        return
    try:
        kept[_key(use, kind)] = Guarded(make(kind, use))
    except SLDError:
        raise
    except Exception as error:
        raise PluginError(
            f"{kind.kind} '{kind.name}' cannot be made: {type(error).__name__}: {error}. Nothing is generated without it"
        ) from error


def _reviewed(
    wanted: Sequence[Sequence[Named]],
    first_flag: Sequence[bool],
    review: Callable[[Named, list[int]], tuple[Guarded[Any], Callable[[Any], object]]],
) -> list[Findings]:
    """Run the filters turn by turn: at each turn every member's next filter, those of the same filter in one batch.

    With ``first_flag`` a member that was flagged, or is withheld because it could not be reviewed, is not looked at again.
    """
    findings = [Findings() for _ in wanted]
    for turn in range(max(map(len, wanted), default=0)):
        batches: dict[Named, list[int]] = {}
        for index, uses in enumerate(wanted):
            over = first_flag[index] and findings[index].decided
            if turn < len(uses) and not over:
                batches.setdefault(uses[turn], []).append(index)
        for named, members in batches.items():
            for index, word in zip(members, _words(named, members, review), strict=True):
                findings[index].add(named[0], word)
    return findings


def _words(
    named: Named,
    members: list[int],
    review: Callable[[Named, list[int]], tuple[Guarded[Any], Callable[[Any], object]]],
) -> Sequence[Verdict | Failure]:
    use = named[0]
    guarded, call = review(named, members)
    try:
        answer, seconds = guarded.call(call, use.timeout)
        verdicts = list(answer)  # type: ignore[call-overload]
        _check_verdicts(verdicts, len(members))
        return [
            replace(judged(use, verdict), shadow=use.shadow, seconds=seconds / len(members))
            for verdict in verdicts
        ]
    except Exception as error:
        failure = _failure(guarded.made, error)
        return [replace(failure, on_error=use.on_error or "")] * len(members)


def judged(use: PromptFilterUse, verdict: Verdict) -> Verdict:
    """The verdict with the policy's thresholds and categories in place of the filter's, where it gives any.

    A category without a threshold of either stays as the filter flagged it.

    Raises:
        ValueError: the policy speaks of categories that the filter has no score for: acting on them would do nothing.
    """
    if not use.judges:
        return verdict
    unknown = {*use.thresholds, *use.only, *use.ignore} - set(verdict.scores)
    if unknown or not verdict.scores:
        raise ValueError(
            f"the policy speaks of {', '.join(sorted(unknown)) or 'a threshold'} and the filter scores "
            f"{', '.join(sorted(verdict.scores)) or 'nothing'}"
        )
    considered = [
        name for name in verdict.scores if name not in use.ignore and (not use.only or name in use.only)
    ]
    limits: dict[str, float] = {}
    for name in considered:
        own = use.threshold if use.threshold is not None else verdict.thresholds.get(name)
        limit = use.thresholds.get(name, own)
        if limit is not None:
            limits[name] = float(limit)
    above = any(verdict.scores[name] >= limit for name, limit in limits.items())
    unsaid = verdict.flagged and len(limits) < len(considered)
    return replace(
        verdict, flagged=above or unsaid, thresholds=limits, reason=_reason(verdict, limits, above)
    )


def _reason(verdict: Verdict, limits: dict[str, float], above: bool) -> str:
    """Why, by the policy's thresholds: the filter's own reason speaks of its own."""
    if not above:
        return ""
    reached = [name for name, limit in limits.items() if verdict.scores[name] >= limit]
    return "; ".join(f"{name} {verdict.scores[name]:.2f} >= {limits[name]:g}" for name in reached)


def _failure(made: Any, error: Exception) -> Failure:
    return Failure(made.name, made.version, f"{type(error).__name__}: {error}")


def _check_verdicts(verdicts: Sequence[Any], count: int) -> None:
    if len(verdicts) != count:
        raise ValueError(f"{len(verdicts)} verdicts for {count}")
    for verdict in verdicts:
        if not isinstance(verdict, Verdict) or not isinstance(verdict.flagged, bool | np.bool_):
            raise TypeError(f"a verdict must be a Verdict with flagged true or false, got {verdict!r:.80}")
        for what, numbers in (("score", verdict.scores), ("threshold", verdict.thresholds)):
            for category, number in numbers.items():
                if not isinstance(category, str) or not isfinite(number) or not 0 <= number <= 1:
                    raise ValueError(f"{what} {number} of {category!r} is not in 0..1")
        for text in (verdict.filter, verdict.version, verdict.reason, verdict.weights):
            if not isinstance(text, str):
                raise TypeError(
                    f"filter, version, reason and weights of a verdict must be texts, got {text!r:.80}"
                )
        for box in verdict.boxes:
            _check_box(box)


def _check_box(box: Any) -> None:
    """A box in pixels, or with its edges the wrong way round, would cover something else."""
    if not isinstance(box, Box):
        raise TypeError(f"boxes must be Box objects, got {box!r:.80}")
    across, along = (box.left, box.right), (box.top, box.bottom)
    for low, high in (across, along):
        if not (isfinite(low) and isfinite(high) and 0 <= low < high <= 1):
            raise ValueError(
                f"edges of a box must be fractions with left < right and top < bottom, got {box}"
            )
