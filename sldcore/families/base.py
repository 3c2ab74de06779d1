"""What the engine must know about a kind of pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from sldcore.types import Schedule

if TYPE_CHECKING:
    from torch import Tensor, nn


class TextOptions(NamedTuple):
    """How a call encodes its prompts, and so its concepts: layers of CLIP skipped, scale of LoRA in the text encoder."""

    clip_skip: int | None = None
    lora_scale: float | None = None


class Family(Protocol):
    """One kind of classic pipeline that calls its denoiser with two halves, unconditional and conditional."""

    name: str
    latents_argument: str
    """The denoiser's argument that holds the latents [2B, ...]."""
    text_arguments: tuple[str, ...]
    """The denoiser's arguments that hold text and are swapped in a concept row."""
    cond_first: bool
    """True if the denoiser is called with [cond; uncond]."""

    def denoiser(self, pipe: Any) -> nn.Module:
        """The module that predicts noise."""
        ...

    def is_guiding(self, pipe: Any) -> bool:
        """During a call: does the pipeline use classifier-free guidance?"""
        ...

    def schedule(self, pipe: Any) -> Schedule:
        """During a call, before the first step: the denoiser calls to come. Synchronises once.

        Raises:
            GuidanceError: the scheduler's noise levels cannot be told.
        """
        ...

    def noise_schedule(self, scheduler: Any, calls: int) -> Schedule:
        """The last ``calls`` denoiser calls of a scheduler whose timesteps are set.

        Raises:
            GuidanceError: the scheduler's noise levels cannot be told.
        """
        ...

    def window(self, pipe: Any) -> int:
        """Tokens that the text encoder takes, begin and end included."""
        ...

    def count_tokens(self, pipe: Any, text: str) -> int:
        """Tokens of ``text`` by the pipeline's own tokenizer, begin and end included, nothing cut off."""
        ...

    def text_options(self, pipe: Any) -> TextOptions:
        """During a call: how it encodes text."""
        ...

    def encode(self, pipe: Any, texts: Sequence[str], options: TextOptions) -> Mapping[str, Tensor]:
        """Text arguments for concept rows: each name of ``text_arguments`` to a tensor [len(texts), ...]."""
        ...

    def encoder_state(self, pipe: Any) -> tuple[Any, ...]:
        """Something that changes when ``encode`` would give another result for the same text."""
        ...


@runtime_checkable
class EncodesTokens(Protocol):
    """A family that can put vectors in place of words, as concept embeddings of kind ``tokens`` need."""

    def encode_tokens(
        self, pipe: Any, prefix: str, vectors: Tensor, options: TextOptions
    ) -> Mapping[str, Tensor]:
        """Text arguments [1, ...] for ``prefix`` and then ``vectors`` [n, D] where n words would stand.

        Pipeline and tokenizer stay as they are.

        Raises:
            ConceptError: another width than the text encoder's, or more vectors than it has room for.
        """
        ...


@runtime_checkable
class EncodesVectors(Protocol):
    """A family whose text encoder also gives one vector for a whole text."""

    def text_vectors(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """One vector per text, [len(texts), D]."""
        ...


def picture_size(denoiser: Any, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width, in pixels, of the pictures that a call asks for."""
    side = getattr(getattr(denoiser, "config", None), "sample_size", 64)
    sides = side if isinstance(side, list | tuple) else (side, side)
    factor = getattr(pipe, "vae_scale_factor", 8)
    height, width = (
        arguments.get(name) or own * factor for name, own in zip(("height", "width"), sides, strict=True)
    )
    return int(height), int(width)
