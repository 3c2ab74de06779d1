"""The filter: the cosine of any part of the prompt and any term of a concept."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sld_filter_prompt_concepts import ConceptOptions, __version__
from sld_filter_prompt_concepts.encoder import encoder_for
from sldcore.filters.base import PromptContext
from sldcore.types import Verdict


class PromptConcepts:
    """Scores each of the policy's concepts with the cosine of the nearest part of the prompt and of the concept.

    Parts are what stands between commas, semicolons and full stops, and the whole. A list of terms as one sentence is close
    to no prompt, and one bad part is lost among ten harmless ones.
    """

    name = "prompt-concepts"
    version = __version__

    def __init__(self, options: ConceptOptions) -> None:
        self._encoder = encoder_for(options.model, options.threads)
        self._threshold = options.threshold

    def review(self, prompts: Sequence[str], contexts: Sequence[PromptContext]) -> list[Verdict]:
        """One verdict per prompt.

        Raises:
            TypeError: a prompt is not a text.
            ValueError: a policy has no concept to compare with.
        """
        return [self._verdict(*each) for each in zip(prompts, contexts, strict=True)]

    def _verdict(self, prompt: str, context: PromptContext) -> Verdict:
        scores = self._scores(prompt, context)
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
            weights=self._encoder.digest,
        )

    def _scores(self, prompt: str, context: PromptContext) -> dict[str, float]:
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt must be a text, got {prompt!r:.80}")
        concepts = {name: texts for name, texts in context.concepts.items() if any(map(parts_of, texts))}
        if not concepts:
            raise ValueError(
                f"{self.name} compares prompts with the concepts of policy '{context.policy.name}', which has none as text; "
                f"give it concepts, or leave the filter out"
            )
        parts = parts_of(prompt)
        if not parts:  # the vector of a blank prompt would stand for nothing that was said
            return dict.fromkeys(concepts, 0.0)
        said = np.concatenate([self._encoder.vectors(part) for part in parts])
        return {name: self._nearest(said, texts) for name, texts in concepts.items()}

    def _nearest(self, said: NDArray[np.float64], texts: Sequence[str]) -> float:
        terms = np.concatenate(
            [self._encoder.kept_vectors(part) for text in texts for part in parts_of(text)]
        )
        return float(np.clip((said @ terms.T).max(), 0, 1))


def parts_of(text: str) -> tuple[str, ...]:
    """The text and what stands in it between commas, semicolons, full stops and line ends, each once; none if it is blank."""
    parts = [text, *re.split(r"[,;\n]|\.(?=\s|$)", text)]
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
