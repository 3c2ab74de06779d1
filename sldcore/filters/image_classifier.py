"""Any image-classification model of transformers in a folder, for example one of the NSFW classifiers of the hub.

    p = softmax(logits) where one label holds (``problem_type`` single_label_classification, or unset)
    p = sigmoid(logits) where several can (``problem_type`` multi_label_classification)

Every label is a category with p as its score. The labels in ``bad`` flag from ``threshold`` on. The picture is prepared by
the model's own preprocessor, which may crop it to its middle.

Nothing was run on trained weights here: tests load models of the real classes with random weights through this code.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, field_validator

from sldcore.contributions import PostFilterKind
from sldcore.errors import ModelError, listed, nearest
from sldcore.filters.base import PictureContext
from sldcore.filters.local_models import (
    LocalModelOptions,
    embedded,
    load_image_processor,
    load_model,
    model_folder,
    weight_files,
    weights_hash,
)
from sldcore.types import Verdict

if TYPE_CHECKING:
    from PIL import Image

NAME: Final = "image-classifier"


class ImageClassifierOptions(LocalModelOptions):
    """Options of ``image-classifier``."""

    bad: str = Field(
        min_length=1, examples=["nsfw"], description="labels that flag a picture, separated by commas"
    )
    threshold: float = Field(0.5, ge=0, le=1, description="score from which a bad label flags")

    @field_validator("bad")
    @classmethod
    def _names_labels(cls, bad: str) -> str:
        if not labels_of(bad):
            raise ValueError("give at least one label, for example 'nsfw'")
        return bad


class ImageClassifier:
    """Scores pictures with an image-classification model, loaded when it is made.

    Raises:
        ModelError: the model cannot be loaded, or has no label that ``bad`` names.
    """

    name = NAME
    version = "1"

    def __init__(self, options: ImageClassifierOptions) -> None:
        from transformers import AutoModelForImageClassification

        folder = model_folder(options.model, "an image-classification model of transformers")
        self._options, self._lock = options, Lock()
        self._processor = load_image_processor(folder)
        self._model = load_model(AutoModelForImageClassification, folder, options)
        self._labels = _labels(self._model.config, options.model)
        self._bad = [_known(label, self._labels, options.model) for label in labels_of(options.bad)]
        self._weights = weights_hash(weight_files(folder))

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture, with the score of every label.

        Raises:
            TypeError: something is not a picture.
            ValueError: a picture cannot be judged.
        """
        if not pictures:
            return []
        with self._lock:
            logits = embedded(pictures, self._processor, self._model, self._options.batch_size, self._logits)
        several = self._model.config.problem_type == "multi_label_classification"
        scores = logits.sigmoid() if several else logits.softmax(-1)
        return [self._verdict(dict(zip(self._labels, row.tolist(), strict=True))) for row in scores]

    def _logits(self, pixels: Any) -> Any:
        return self._model(pixel_values=pixels).logits  # [b, labels]

    def _verdict(self, scores: dict[str, float]) -> Verdict:
        limit = self._options.threshold
        found = [f"{label} {scores[label]:.2f}" for label in self._bad if scores[label] >= limit]
        reason = f"the classifier sees {', '.join(found)} (threshold {limit:g})" if found else ""
        thresholds = dict.fromkeys(self._bad, limit)
        return Verdict(
            NAME, self.version, bool(found), scores, thresholds, reason=reason, weights=self._weights
        )


def labels_of(text: str) -> tuple[str, ...]:
    """The labels in a comma list, each once."""
    return tuple(dict.fromkeys(label.strip() for label in text.split(",") if label.strip()))


def _labels(config: Any, model: str) -> list[str]:
    labels = [config.id2label[index] for index in range(config.num_labels)]
    if len(set(labels)) != len(labels) or len(labels) < 1:
        raise ModelError(
            f"{model}: labels must differ, got {', '.join(labels)}; correct id2label in its config.json"
        )
    if len(labels) == 1 and config.problem_type != "multi_label_classification":
        raise ModelError(
            f"{model} has one label, '{labels[0]}', of which softmax always gives 1; if it is meant for sigmoid, say "
            f'"problem_type": "multi_label_classification" in its config.json'
        )
    if config.problem_type == "regression":
        raise ModelError(f"{model} predicts a quantity, not labels; give a classification model")
    return labels


def _known(label: str, labels: Sequence[str], model: str) -> str:
    if label not in labels:
        raise ModelError(
            f"{model} has no label '{label}'{nearest(label, labels)} (available: {listed(labels)})"
        )
    return label


KIND: Final = PostFilterKind(
    name=NAME,
    description="an image-classification model of transformers from a folder",
    options=ImageClassifierOptions,
    create=ImageClassifier,
)
