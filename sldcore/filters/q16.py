"""Q16: inappropriate pictures by two learned prompts, on the picture embedding of CLIP ViT-L/14.

After "Can Machines Help Us Answering Question 16 in Datasheets, and In Turn Reflecting on Inappropriate Content?" (Schramowski,
Tauchmann and Kersting, FAccT 2022, arXiv 2202.06675). With c the cosines of the picture's embedding and the two prompts:

    p = softmax(100 c)

The one category, ``inappropriate``, has p of the second prompt as its score; the default threshold of 0.5 is the original's
choice of the likelier prompt. The prompts are a safetensors file with one tensor ``prompts``, [2, D], in the original's order:
first what is fine, then what is not. ``sldcore.filters.q16_convert`` writes one from the original's pickled file.

Nothing was run on trained weights or on the original prompts here: tests load a model of the real class with random weights
through this code.
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
    explained,
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

NAME: Final = "q16"
CATEGORY: Final = "inappropriate"
TENSOR: Final = "prompts"
SCALE: Final = 100.0


class Q16Options(LocalModelOptions):
    """Options of ``q16``."""

    prompts: str = Field(
        min_length=1,
        examples=["models/q16.safetensors"],
        description="safetensors file with the two learned prompts, as sldcore.filters.q16_convert writes it",
    )
    threshold: float = Field(0.5, ge=0, le=1, description="score from which a picture is flagged")


class Q16:
    """Scores pictures with Q16, loaded when it is made.

    Raises:
        ModelError: the model or the prompts cannot be loaded, or do not belong together.
    """

    name = NAME
    version = "1"

    def __init__(self, options: Q16Options) -> None:
        from transformers import CLIPVisionModelWithProjection

        folder = model_folder(options.model, "CLIP ViT-L/14")
        self._options, self._lock = options, Lock()
        self._processor = load_image_processor(folder)
        self._model = load_model(CLIPVisionModelWithProjection, folder, options)
        prompts = Path(options.prompts).expanduser()
        self._prompts = unit(_prompts(prompts, self._model.config.projection_dim))
        self._weights = weights_hash([*weight_files(folder), prompts])

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture.

        Raises:
            TypeError: something is not a picture.
            ValueError: a picture cannot be judged.
        """
        if not pictures:
            return []
        with self._lock:
            found = embedded(pictures, self._processor, self._model, self._options.batch_size, self._embed)
        likely = (SCALE * unit(found) @ self._prompts.T).softmax(-1)  # [B, 2]
        return [self._verdict(score) for score in likely[:, 1].tolist()]

    def _embed(self, pixels: Any) -> Any:
        return self._model(pixel_values=pixels).image_embeds  # [b, D]

    def _verdict(self, score: float) -> Verdict:
        limit = self._options.threshold
        flagged = score >= limit
        reason = f"Q16 calls it inappropriate: {score:.2f} (threshold {limit:g})" if flagged else ""
        return Verdict(
            filter=NAME,
            version=self.version,
            flagged=flagged,
            scores={CATEGORY: score},
            thresholds={CATEGORY: limit},
            reason=reason,
            weights=self._weights,
        )


def _prompts(path: Path, width: int) -> Any:
    """The two prompts of a file, [2, width], float32."""
    from safetensors.torch import load_file

    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{path} is not a .safetensors file; convert the original prompts.p with sldcore.filters.q16_convert"
        )
    with explained(path, "the prompts"):
        tensors = load_file(path)
    if TENSOR not in tensors:
        raise ModelError(
            f"{path} holds no tensor '{TENSOR}'; write it with sldcore.filters.q16_convert from the original prompts.p"
        )
    prompts = tensors[TENSOR]
    if tuple(prompts.shape) != (2, width) or not prompts.is_floating_point():
        raise ModelError(
            f"{path}: '{TENSOR}' is {list(prompts.shape)} of {prompts.dtype}, and the model's embeddings need floats of "
            f"[2, {width}]; the original prompts belong to CLIP ViT-L/14"
        )
    prompts = prompts.float()
    if not prompts.isfinite().all() or not prompts.norm(dim=-1).gt(0).all():
        raise ModelError(f"{path}: '{TENSOR}' holds numbers that are not finite, or a prompt of zeros")
    return prompts


KIND: Final = PostFilterKind(
    name=NAME,
    description="Q16: CLIP ViT-L/14 from a folder, with two learned prompts from a safetensors file",
    options=Q16Options,
    create=Q16,
)
