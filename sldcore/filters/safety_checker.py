"""Stable Diffusion's safety checker from a folder, with its scores, an adjustable strictness, and arithmetic of our own.

With c the cosine of the picture's CLIP embedding and a concept's, w the concept's threshold, and o the option ``offset``:

    care    any special-care concept with  c - w + o > 0.0005
    flagged any concept with               c - w + o + 0.01 care > 0.0005

which is what diffusers decides at o = 0, where it rounds to three digits first. A category is one concept, ``concept-0`` to
``concept-16`` in the order of the weights (their texts were never published); its score is (1 + c) / 2, and its threshold is
mapped likewise, so it differs from picture to picture by the 0.005 that special care takes off. ``special-0`` to ``special-2``
have scores and no thresholds: they never flag by themselves.

The folder is a checker's or a whole pipeline's. Without a preprocessor of its own, the checker uses the one in the folder
``feature_extractor`` beside it. Nothing was run on trained weights here: tests load a checker of the real class with random
weights through this code, and compare it with diffusers' own decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from sldcore.contributions import PostFilterKind
from sldcore.errors import ModelError
from sldcore.filters.base import PictureContext
from sldcore.filters.local_models import (
    LocalModelOptions,
    embedded,
    finite,
    load_image_processor,
    load_model,
    model_folder,
    unit,
    weight_files,
    weights_hash,
)
from sldcore.types import Verdict

if TYPE_CHECKING:
    from PIL import Image

NAME: Final = "safety-checker"
CARE: Final = 0.01
"""What a special-care concept takes off every threshold."""
ROUNDING: Final = 0.0005
"""What must be exceeded to be more than zero in three digits."""


class SafetyCheckerOptions(LocalModelOptions):
    """Options of ``safety-checker``."""

    offset: float = Field(
        0.0, ge=-1, le=1, description="added to every cosine: above 0 flags more, below 0 flags less"
    )


class SafetyChecker:
    """Scores pictures with a ``StableDiffusionSafetyChecker``, loaded when it is made.

    Raises:
        ModelError: the checker or its preprocessor cannot be loaded.
    """

    name = NAME
    version = "1"

    def __init__(self, options: SafetyCheckerOptions) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        folder = model_folder(_of_pipeline(options.model), "a Stable Diffusion safety checker")
        self._options, self._lock = options, Lock()
        self._processor = load_image_processor(_preprocessor(folder))
        self._checker = load_model(StableDiffusionSafetyChecker, folder, options)
        self._weights = weights_hash(weight_files(folder))
        self._concepts, self._limits = self._sphere("concept")
        self._special, self._special_limits = self._sphere("special_care")

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture, with the score of every concept.

        Raises:
            TypeError: something is not a picture.
            ValueError: a picture cannot be judged.
        """
        if not pictures:
            return []
        with self._lock:
            found = embedded(pictures, self._processor, self._checker, self._options.batch_size, self._embeds)
        return [self._verdict(vector) for vector in unit(found)]

    def _embeds(self, pixels: Any) -> Any:
        pooled = self._checker.vision_model(pixels).pooler_output
        return self._checker.visual_projection(pooled)  # [b, D]

    def _sphere(self, kind: str) -> tuple[Any, Any]:
        """Concepts of one kind as vectors of length one, [K, D], and the cosines at which they count, [K]."""
        vectors = getattr(self._checker, f"{kind}_embeds").float().cpu()
        limits = getattr(self._checker, f"{kind}_embeds_weights").float().cpu()
        return unit(finite(vectors)), finite(limits)

    def _verdict(self, vector: Any) -> Verdict:
        cosines, special = self._concepts @ vector, self._special @ vector
        reach = ROUNDING - self._options.offset
        care = bool((special - self._special_limits > reach).any())
        limits = self._limits + reach - CARE * care
        over = (cosines > limits).nonzero().flatten().tolist()
        scores = _named("concept", cosines) | _named("special", special)
        reason = f"the safety checker finds {', '.join(f'concept-{index}' for index in over)}" if over else ""
        if over and care:
            reason += ", with special care"
        thresholds = _named("concept", limits)
        return Verdict(
            NAME, self.version, bool(over), scores, thresholds, reason=reason, weights=self._weights
        )


def _of_pipeline(model: str) -> str:
    """The checker's folder, if ``model`` is that of a pipeline which has one."""
    inner = Path(model).expanduser() / "safety_checker"
    return str(inner) if inner.is_dir() else model


def _preprocessor(folder: Path) -> Path:
    for place in (folder, folder.resolve().parent / "feature_extractor"):
        if (place / "preprocessor_config.json").is_file():
            return place
    raise ModelError(
        f"{folder} holds no preprocessor_config.json, and there is no folder 'feature_extractor' with one beside it; copy it "
        f"from the pipeline that the checker belongs to"
    )


def _named(kind: str, cosines: Any) -> dict[str, float]:
    mapped = ((1 + cosines) / 2).clamp(0, 1).tolist()
    return {f"{kind}-{index}": score for index, score in enumerate(mapped)}


KIND: Final = PostFilterKind(
    name=NAME,
    description="Stable Diffusion's safety checker from a folder, with its scores",
    options=SafetyCheckerOptions,
    create=SafetyChecker,
)
