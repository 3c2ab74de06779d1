"""The filters of a policy, run in its order over a batch, and never failing open.

A filter that raises, gives the wrong number of verdicts or a score that is no probability is a failure of every picture that
it was to review: these are withheld, and their reports say why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray
from PIL import Image

from sldcore.errors import PluginError, SLDError
from sldcore.filters.base import PictureContext, PostFilter, PromptFilter
from sldcore.policy import FilterUse, SafetyPolicy
from sldcore.resolution import filters_of, make_filter, make_prompt_filter, prompt_filters_of
from sldcore.types import Failure, Verdict


@dataclass(slots=True)
class Findings:
    """What filters say about one picture: verdicts in the policy's order, failures, and whether it must go black."""

    verdicts: list[Verdict] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    black: bool = False


class Chain:
    """The filters of one engine, made when a policy first names them and kept, since detectors are slow to load."""

    def __init__(self) -> None:
        self._filters: dict[FilterUse, PostFilter] = {}
        self._prompt_filters: dict[FilterUse, PromptFilter] = {}

    def prepare(self, policies: Iterable[SafetyPolicy]) -> None:
        """Make the filters that ``policies`` name.

        Raises:
            ConfigurationError: one cannot be had or made.
        """
        for policy in policies:
            for use, kind in filters_of(policy):
                if use not in self._filters:
                    self._filters[use] = _made(kind, use, make_filter)
            for use, prompt_kind in prompt_filters_of(policy):
                if use not in self._prompt_filters:
                    self._prompt_filters[use] = _made(prompt_kind, use, make_prompt_filter)

    def prompts(self, prompts: Sequence[str], policies: Sequence[SafetyPolicy]) -> list[Findings]:
        """Findings of the prompt filters, one per prompt."""
        uses = {policy: [use for use, _ in prompt_filters_of(policy)] for policy in dict.fromkeys(policies)}

        def review(use: FilterUse, members: list[int]) -> Sequence[Verdict]:
            return self._prompt_filters[use].review([prompts[index] for index in members])

        return _reviewed([uses[policy] for policy in policies], self._prompt_filters, review)

    def pictures(
        self, pixels: NDArray[np.float32], contexts: Sequence[PictureContext], skip: Sequence[bool]
    ) -> list[Findings]:
        """Findings of the filters, one per picture; ``pixels`` [B, H, W, 3] in 0..1.

        Pictures to ``skip`` are withheld already: nothing is said about them.
        """
        policies = [context.policy for context in contexts]
        uses = {policy: [use for use, _ in filters_of(policy)] for policy in dict.fromkeys(policies)}
        wanted = [[] if gone else uses[policy] for policy, gone in zip(policies, skip, strict=True)]

        def review(use: FilterUse, members: list[int]) -> Sequence[Verdict]:
            pictures: list[Image.Image] = VaeImageProcessor.numpy_to_pil(pixels[members])
            return self._filters[use].review(pictures, [contexts[index] for index in members])

        return _reviewed(wanted, self._filters, review)


def _made(kind: Any, use: FilterUse, make: Callable[[Any, FilterUse], Any]) -> Any:
    try:
        return make(kind, use)
    except SLDError:
        raise
    except Exception as error:
        raise PluginError(
            f"{kind.kind} '{kind.name}' cannot be made: {type(error).__name__}: {error}. Nothing is generated without it"
        ) from error


def _reviewed(
    wanted: Sequence[Sequence[FilterUse]],
    filters: dict[FilterUse, Any],
    review: Callable[[FilterUse, list[int]], Sequence[Verdict]],
) -> list[Findings]:
    """Run each filter once over all members that want it; put the verdicts together per member, in its own order."""
    said: dict[tuple[FilterUse, int], Verdict | Failure] = {}
    for use in dict.fromkeys(use for uses in wanted for use in uses):
        members = [index for index, uses in enumerate(wanted) if use in uses]
        for index, word in zip(members, _words(filters[use], use, members, review), strict=True):
            said[use, index] = word
    findings = [Findings() for _ in wanted]
    for index, uses in enumerate(wanted):
        for use in uses:
            word = said[use, index]
            if isinstance(word, Failure):
                findings[index].failures.append(word)
            else:
                findings[index].verdicts.append(word)
                findings[index].black |= word.flagged and use.on_flag == "black"
    return findings


def _words(
    made: Any,
    use: FilterUse,
    members: list[int],
    review: Callable[[FilterUse, list[int]], Sequence[Verdict]],
) -> Sequence[Verdict | Failure]:
    try:
        verdicts = list(review(use, members))
        _check_verdicts(verdicts, len(members))
        return verdicts
    except Exception as error:
        return [Failure(made.name, made.version, f"{type(error).__name__}: {error}")] * len(members)


def _check_verdicts(verdicts: Sequence[Any], count: int) -> None:
    if len(verdicts) != count:
        raise ValueError(f"{len(verdicts)} verdicts for {count}")
    for verdict in verdicts:
        if not isinstance(verdict, Verdict) or not isinstance(verdict.flagged, bool | np.bool_):
            raise TypeError(f"a verdict must be a Verdict with flagged true or false, got {verdict!r:.80}")
        for category, score in verdict.scores.items():
            if not isfinite(score) or not 0 <= score <= 1:
                raise ValueError(f"score {score} of '{category}' is not in 0..1")
