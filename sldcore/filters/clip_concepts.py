"""Concepts recognised by their texts, with any CLIP or SigLIP model of transformers in a folder.

With s and b the model's learned scale and bias, and c(t) the cosine of the picture's embedding and that of text t:

    CLIP    p(t) = exp(s c(t)) / (exp(s c(t)) + sum over neutral texts n of exp(s c(n)))
    SigLIP  p(t) = 1 / (1 + exp(-(s c(t) + b)))

A category is one concept. Its score is p of its text, or the highest p of its parts where the text is longer than the model's
window; so it does not depend on which other concepts are looked for, nor on other pictures.

The default threshold of 0.5 follows from the definitions and was calibrated on nothing. For CLIP it means that the concept's
text fits the picture better than all neutral texts together. For SigLIP it is where the training objective divides texts that
belong to a picture from those that do not; published SigLIP models often give much less than that to texts that fit, so expect
to lower it. Set it on pictures of your own, with ``shadow: true`` in the policy.

Nothing was run on trained weights here: tests load models of the real classes with random weights through this code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from sldcore.contributions import PostFilterKind
from sldcore.errors import ConfigurationError, ModelError
from sldcore.filters.base import PictureContext
from sldcore.filters.concept_texts import ConceptOptions, concepts_for, named_concepts
from sldcore.filters.local_models import (
    embedded,
    finite,
    load_image_processor,
    load_model,
    load_tokenizer,
    model_folder,
    unit,
    weight_files,
    weights_hash,
)
from sldcore.splitting import split_to_window
from sldcore.types import Concept, Verdict

if TYPE_CHECKING:
    from PIL import Image

NAME: Final = "clip-concepts"
NEUTRAL: Final = (
    "an image",
    "an image showing a person",
    "an image showing an everyday scene",
    "an image showing a landscape",
)
"""What CLIP compares with by default."""


class ClipConceptsOptions(ConceptOptions):
    """Options of ``clip-concepts``."""

    neutral: str = Field(
        "", description="texts that CLIP compares with, separated by semicolons; four plain ones by default"
    )


class ClipConcepts:
    """Scores the concepts of a policy in pictures by their texts, with a model that is loaded when the filter is made.

    Raises:
        ModelError: the model cannot be loaded, or is no CLIP or SigLIP.
        ConfigurationError: the options name no text, or one that is too long for the model, or a concept that cannot be had.
    """

    name = NAME
    version = "1"

    def __init__(self, options: ClipConceptsOptions) -> None:
        from transformers import AutoModel

        folder = model_folder(options.model, "a CLIP or SigLIP model")
        self._options, self._lock = options, Lock()
        self._own = named_concepts(options.concepts)
        self._processor = load_image_processor(folder)
        self._tokenizer = load_tokenizer(folder)
        self._model = load_model(AutoModel, folder, options)
        self._sigmoid = _is_siglip(self._model, options.model)
        self._scale = float(finite(self._model.logit_scale.float().exp()))
        self._bias = float(finite(self._model.logit_bias.float())) if self._sigmoid else 0.0
        self._window = self._model.config.text_config.max_position_embeddings
        self._weights = weights_hash(weight_files(folder))
        self._vector = lru_cache(1024)(self._embed_text)
        self._neutral = _neutral_texts(options.neutral, self._sigmoid)
        for text in self._neutral:
            self._refuse_long(text)
        for concept in (part for parts in self._own.values() for part in parts):
            self._fitted(concept)

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture, with the score of every concept.

        Raises:
            TypeError: something is not a picture.
            ValueError: a picture cannot be judged, or there is no concept to look for.
        """
        wanted = [concepts_for(context, self._own) for context in contexts]
        if not pictures:
            return []
        with self._lock:
            vectors = unit(
                embedded(pictures, self._processor, self._model, self._options.batch_size, self._embed)
            )
            return [self._verdict(vector, concepts) for vector, concepts in zip(vectors, wanted, strict=True)]

    def _verdict(self, picture: Any, concepts: Mapping[str, tuple[Concept, ...]]) -> Verdict:
        scores = {
            name: max(self._score(picture, text) for part in parts for text in self._fitted(part))
            for name, parts in concepts.items()
        }
        limit = self._options.threshold
        found = sorted((name for name in scores if scores[name] >= limit), key=lambda name: -scores[name])
        seen = ", ".join(f"{name} {scores[name]:.2f}" for name in found)
        reason = f"the picture matches the text of {seen} (threshold {limit:g})" if found else ""
        thresholds = dict.fromkeys(scores, limit)
        return Verdict(
            NAME, self.version, bool(found), scores, thresholds, reason=reason, weights=self._weights
        )

    def _score(self, picture: Any, text: str) -> float:
        logit = self._scale * (self._vector(text) @ picture) + self._bias
        if not self._sigmoid:
            import torch

            neutral = torch.stack([self._scale * (self._vector(other) @ picture) for other in self._neutral])
            logit = logit - neutral.logsumexp(0)  # its sigmoid is the softmax against the neutral texts
        return float(logit.sigmoid())

    def _embed(self, pixels: Any) -> Any:
        return _pooled(self._model.get_image_features(pixel_values=pixels))  # [b, D]

    def _embed_text(self, text: str) -> Any:
        """The vector of one text, [D], of length one."""
        import torch

        ids = self._ids(text, padded=self._sigmoid)
        with torch.inference_mode():
            found = _pooled(
                self._model.get_text_features(input_ids=torch.tensor([ids], device=self._model.device))
            )
        return unit(finite(found.float().cpu()))[0]

    def _ids(self, text: str, padded: bool = False) -> list[int]:
        """Token ids. SigLIP was trained on lower case, padded to its window without a mask."""
        if self._sigmoid:
            text = text.lower()
        padding = {"padding": "max_length", "max_length": self._window} if padded else {}
        ids: list[int] = self._tokenizer(text, truncation=False, **padding)["input_ids"]
        return ids

    def _fitted(self, concept: Concept) -> tuple[str, ...]:
        return split_to_window(concept, lambda text: len(self._ids(text)), self._window)

    def _refuse_long(self, text: str) -> None:
        if (tokens := len(self._ids(text))) > self._window:
            raise ConfigurationError(
                f"the neutral text '{text:.60}' takes {tokens} tokens and the model's window is {self._window}; shorten it"
            )


def _neutral_texts(given: str, sigmoid: bool) -> tuple[str, ...]:
    texts = tuple(text.strip() for text in given.split(";") if text.strip())
    if sigmoid and given:
        raise ConfigurationError(
            "a SigLIP model scores each text by itself: leave the option 'neutral' out, it would do nothing"
        )
    if given and not texts:
        raise ConfigurationError(
            "the option 'neutral' holds no text; give some, separated by semicolons, or leave it out"
        )
    return texts or NEUTRAL


def _is_siglip(model: Any, folder: str) -> bool:
    if model.config.model_type == "siglip2":
        raise ModelError(
            f"{folder} is a NaFlex model, which takes pictures as lists of patches; give a SigLIP model with a fixed size"
        )
    if not all(
        hasattr(model, part) for part in ("logit_scale", "get_text_features", "get_image_features")
    ) or not hasattr(model.config, "text_config"):
        raise ModelError(
            f"{folder} is a {type(model).__name__}, which does not compare pictures with texts; give a CLIP or SigLIP model"
        )
    return hasattr(model, "logit_bias")


def _pooled(found: Any) -> Any:
    """The embeddings, which newer transformers hand out inside an object."""
    return getattr(found, "pooler_output", found)


KIND: Final = PostFilterKind(
    name=NAME,
    description="the policy's concepts by their texts, with a CLIP or SigLIP model from a folder",
    options=ClipConceptsOptions,
    create=ClipConcepts,
)
