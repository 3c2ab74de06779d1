"""The texts of one pipeline call, for guidance methods that rewrite prompts: what was asked for, and what it is encoded to.

Everything here happens before the first step, and may wait for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sldcore.catalogue import current
from sldcore.contributions import FamilyKind
from sldcore.denoiser import DenoiserCall
from sldcore.encoding import RunConcepts
from sldcore.errors import GuidanceError, listed
from sldcore.families.base import COND, Family, MasksTokens, TextSpace


class CallPrompts:
    """:class:`sldcore.guidance.base.PromptTexts` for a call whose denoiser is called for the first time.

    Samples are in the pipeline's order, all pictures of a prompt together. What is encoded is remembered for as long as this
    object lives: pictures of one prompt share its masked rows.

    Args:
        pipe: The pipeline.
        family: Its family.
        encoded: Arguments of the call's own ``encode_prompt``; none if the pipeline was given no prompt.
        call: The denoiser call.
        concepts: The run's concepts.
    """

    def __init__(
        self, pipe: Any, family: Family, encoded: Mapping[str, Any], call: DenoiserCall, concepts: RunConcepts
    ) -> None:
        self._pipe = pipe
        self._family = family
        self._encoded = encoded
        self._call = call.kept()  # a gate may ask in the middle of the loop
        self._concepts = concepts
        self._masked: dict[tuple[tuple[str, str], ...], tuple[TextSpace, ...]] = {}
        self._pooled: dict[tuple[str, ...], tuple[TextSpace, ...]] = {}

    @property
    def text_rows(self) -> int:
        """Rows that text encoders evaluated so far; of a pipeline with several encoders, the rows of each."""
        return sum(
            len(space.vectors)
            for spaces in (*self._masked.values(), *self._pooled.values())
            for space in spaces
            if space.tokens is not None  # a pooled vector is of the same row
        )

    def arguments(self, sample: int) -> Mapping[str, Tensor]:
        """The denoiser's text arguments of a sample's conditional row, [1, ...] each.

        Raises:
            GuidanceError: the call has no conditional row, or no such argument.
        """
        call = self._call
        if COND not in call.parts:
            raise GuidanceError(
                f"family '{self._family.name}' calls its denoiser once for each part, so the prompt's text is not known "
                f"before the first step; use another guidance method"
            )
        row = call.parts.index(COND) * call.batch + sample
        return {path: self._row(path, row) for path in self._family.text_arguments}

    def prompt(self, sample: int) -> str:
        """The sample's prompt.

        Raises:
            GuidanceError: the call gives embeddings and no prompt.
        """
        return self._prompts(sample)["prompt"]

    def concept(self, index: int) -> str:
        """The text of one of the run's concepts.

        Raises:
            GuidanceError: the concept is an embedding.
        """
        row = self._concepts.rows[index]
        if row.embedding is not None:
            raise GuidanceError(
                f"concept '{row.id}' is the embedding {row.embedding.path.name}, and this guidance method reads the texts of "
                f"its concepts; use a concept that is a text, or another method"
            )
        return row.text

    def masked(self, sample: int) -> tuple[TextSpace, ...]:
        """The prompt without each of its tokens.

        Raises:
            GuidanceError: the call gives embeddings and no prompt, or the family cannot mask tokens.
        """
        family, prompts = self._masking(), self._prompts(sample)
        key = tuple(sorted(prompts.items()))
        if key not in self._masked:
            options = self._family.text_options(self._pipe, self._encoded)
            self._masked[key] = family.masked_spaces(self._pipe, prompts, options)
        return self._masked[key]

    def pooled(self, texts: Sequence[str]) -> tuple[TextSpace, ...]:
        """One vector for each of ``texts``.

        Raises:
            GuidanceError: the family cannot mask tokens.
        """
        family, key = self._masking(), tuple(texts)
        if key not in self._pooled:
            options = self._family.text_options(self._pipe, self._encoded)
            self._pooled[key] = family.text_spaces(self._pipe, key, options)
        return self._pooled[key]

    def _masking(self) -> MasksTokens:
        family = self._family
        if not isinstance(family, MasksTokens):
            kinds = [entry.contribution for entry in current().core_entries(FamilyKind)]
            able = [
                kind.name
                for kind in kinds
                if isinstance(kind, FamilyKind) and isinstance(kind.create(), MasksTokens)
            ]
            raise GuidanceError(
                f"this guidance method looks at the prompt without each of its tokens, which family '{family.name}' cannot "
                f"encode (families that can: {listed(able)}); use another guidance method"
            )
        return family

    def _prompts(self, sample: int) -> dict[str, str]:
        """The sample's own of each argument of ``encode_prompt`` that holds prompts."""
        given = {
            name: [value] if isinstance(value, str) else list(value)
            for name, value in self._encoded.items()
            if name in ("prompt", "prompt_2") and isinstance(value, str | list | tuple)
        }
        if "prompt" not in given or self._encoded.get("prompt_embeds") is not None:
            raise GuidanceError(
                "this guidance method reads the prompt, and the pipeline's encode_prompt was given none (the call has "
                "prompt_embeds, or the pipeline encodes texts in another way); give it prompt=, or use another guidance method"
            )
        count = len(given["prompt"])
        pictures, rest = divmod(self._call.batch, count)
        if rest:
            raise GuidanceError(
                f"the pipeline generates {self._call.batch} pictures for {count} prompts, so it is not known which picture "
                f"has which prompt; give one prompt, or the same number of pictures for each"
            )
        at = sample // pictures
        return {name: texts[at if len(texts) == count else 0] for name, texts in given.items()}

    def _row(self, path: str, row: int) -> Tensor:
        """One row [1, ...] of a text argument; ``a.b`` is key b of argument a."""
        arguments = self._call.bound.arguments
        value: Any = arguments
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if not isinstance(value, Tensor):
            raise GuidanceError(
                f"the pipeline calls its denoiser without {path}, so no text can be put there"
            )
        group = 1 if value.shape[0] == self._call.rows else self._family.rows_per_sample(arguments)
        return value[row * group : row * group + 1]
