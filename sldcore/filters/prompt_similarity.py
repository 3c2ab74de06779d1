"""A prompt filter that compares the prompt with the policy's concepts, through the pipeline's own text encoder.

It needs no model of its own and sees what the pipeline sees. But a text encoder made for pictures puts all texts close
together: what counts as similar depends on the encoder, so the threshold must be measured on prompts of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import Field

from sldcore import __version__
from sldcore.contributions import PromptFilterKind
from sldcore.documents import Strict
from sldcore.filters.base import PromptContext
from sldcore.types import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]
    Encode = Callable[[Sequence[str]], NDArray[np.float32]]

NAME: Final = "prompt-similarity"
UNIT: Final = 1e-3
"""How far the length of an encoded text may be from one."""


class SimilarityOptions(Strict):
    """The threshold has no default, since none would do for every encoder."""

    threshold: float = Field(
        ge=0,
        le=1,
        examples=[0.7],
        description="cosine from which a prompt counts as about a concept; measure it for the pipeline in use",
    )


class PromptSimilarity:
    """Scores each of the policy's concepts with the cosine of the prompt and the nearest of the concept's texts."""

    name, version = NAME, __version__

    def __init__(self, options: SimilarityOptions) -> None:
        self._threshold = options.threshold

    def review(self, prompts: Sequence[str], contexts: Sequence[PromptContext]) -> list[Verdict]:
        """One verdict per prompt.

        Raises:
            TypeError: a prompt is not a text.
            ValueError: there is no text encoder or no concept to compare with, or the encoder gives no unit vectors.
        """
        known: dict[tuple[Encode, str], Vector] = {}
        return [
            self._verdict(similarities(prompt, context, known))
            for prompt, context in zip(prompts, contexts, strict=True)
        ]

    def _verdict(self, scores: dict[str, float]) -> Verdict:
        near = sorted(
            (name for name in scores if scores[name] >= self._threshold), key=lambda name: -scores[name]
        )
        return Verdict(
            filter=self.name,
            version=self.version,
            flagged=bool(near),
            scores=scores,
            thresholds=dict.fromkeys(scores, self._threshold),
            reason=f"the prompt is close to {', '.join(near)}" if near else "",
        )


def similarities(
    prompt: str, context: PromptContext, known: dict[tuple[Encode, str], Vector] | None = None
) -> dict[str, float]:
    """The cosine of a prompt and each concept, 0..1: of the nearest of its texts, and 0 if that points away.

    ``known`` holds what was encoded before, and is added to.

    Raises:
        TypeError: the prompt is not a text.
        ValueError: there is no text encoder or no concept to compare with, or the encoder gives no unit vectors.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt must be a text, got {prompt!r:.80}")
    encode, known = context.encode, {} if known is None else known
    if encode is None:
        raise ValueError(
            f"{NAME} compares prompts through a pipeline's text encoder and there is none here; review prompts "
            f"with an engine, or use a filter with an encoder of its own, such as prompt-concepts"
        )
    texts = {name: own for name, own in context.concepts.items() if own}
    if not texts:
        raise ValueError(
            f"{NAME} compares prompts with the concepts of policy '{context.policy.name}', which has none as text; "
            f"give it concepts, or leave the filter out"
        )
    for text in (prompt, *(text for own in texts.values() for text in own)):
        if (encode, text) not in known:
            # One by one: what stands beside a text in a batch must not change its vector.
            known[encode, text] = _unit(encode([text]))
    vector = known[encode, prompt]
    nearest = {name: max(vector @ known[encode, text] for text in own) for name, own in texts.items()}
    return {name: float(np.clip(cosine, 0, 1)) for name, cosine in nearest.items()}


def _unit(encoded: NDArray[np.float32]) -> Vector:
    vectors = np.asarray(encoded, np.float64)
    if vectors.ndim != 2 or len(vectors) != 1:
        raise ValueError(f"the text encoder gives an array of shape {vectors.shape} for one text")
    if not abs(float(np.linalg.norm(vectors)) - 1) < UNIT:
        raise ValueError("the text encoder gives a vector that is not of length one; is a weight NaN?")
    return vectors.ravel()


KIND: Final = PromptFilterKind(
    name=NAME,
    description="closeness of the prompt to the policy's concepts, by the pipeline's text encoder",
    options=SimilarityOptions,
    create=PromptSimilarity,
)
"""Similarity to the policy's concepts as a filter of prompts."""
