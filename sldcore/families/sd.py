"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, [uncond; cond].

What else variants give the UNet (ControlNet, T2I-Adapter, depth, boxes) is copied with the conditional row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from sldcore.errors import ConceptError
from sldcore.families.base import TextOptions
from sldcore.families.pag import PerturbedAttention

_PLACEHOLDER: Final = "a"


class StableDiffusion(PerturbedAttention):
    """Text goes into the UNet as ``encoder_hidden_states`` [2B, L, D]."""

    name = "stable-diffusion"
    denoiser_names: ClassVar[tuple[str, ...]] = ("unet",)
    latents_argument = "sample"
    option_names: ClassVar[tuple[str, ...]] = ("clip_skip", "lora_scale")

    def text_vectors(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """The mean of the states of a text's own tokens, [len(texts), D]: CLIP's pooled state tells short texts apart less well.

        What is beyond the window is cut off, as in the pipeline's own prompts.
        """
        options = TextOptions()
        own = []
        for text, encoded in zip(texts, self.encode(pipe, texts, options), strict=True):
            count = min(self.count_tokens(pipe, text), self.window(pipe, options))
            own.append(encoded["encoder_hidden_states"][0, 1 : max(count - 1, 2)].mean(0))
        return torch.stack(own)

    def encode_tokens(
        self, pipe: Any, prefix: str, vectors: Tensor, options: TextOptions
    ) -> Mapping[str, Tensor]:
        """As ``encode`` of the prefix and n words, with ``vectors`` [n, D] in place of the words' embeddings."""
        count = len(vectors)
        text = " ".join([prefix, *[_PLACEHOLDER] * count]).strip()
        start = self.count_tokens(pipe, prefix) - 1  # before the end token
        tokens = self.count_tokens(pipe, text)
        if tokens != start + count + 1:
            raise ConceptError(
                "the pipeline's tokenizer does not read 'a' as one token, so no vector can take its place"
            )
        window = self.window(pipe, options)
        if tokens > window:
            raise ConceptError(
                f"the embedding's {count} tokens and its prefix take {tokens} tokens, and the text encoder's window is "
                f"{window}; shorten the prefix or use fewer tokens"
            )
        with _replaced_words(pipe.text_encoder.get_input_embeddings(), start, vectors):
            (encoded,) = self.encode(pipe, [text], options)
        return encoded


@contextmanager
def _replaced_words(words: nn.Module, start: int, vectors: Tensor) -> Iterator[None]:
    """Inside the block, ``words`` gives ``vectors`` [n, D] at the positions from ``start`` on, in this thread alone.

    Raises:
        ConceptError: another width than the text encoder's, or the text encoder did not ask ``words`` (a compiled one
            does not see hooks), so that the vectors would be without effect.
    """
    width: int = words.embedding_dim  # type: ignore[assignment]
    if vectors.shape[-1] != width:
        raise ConceptError(
            f"the embedding's tokens have width {vectors.shape[-1]}, and this pipeline's text encoder has {width}"
        )
    thread, used = get_ident(), False

    def replace(_module: nn.Module, _arguments: Any, embedded: Tensor) -> Tensor | None:
        nonlocal used
        if get_ident() != thread:  # another pipeline may share the text encoder
            return None
        used = True
        stop = start + len(vectors)
        middle = vectors.to(embedded).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :start], middle, embedded[:, stop:]], dim=1)  # [1, 77, D]

    handle = words.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
    if not used:
        raise ConceptError(
            "the text encoder cannot take token embeddings: its words were not looked up where they can be replaced. "
            "Use a text encoder that is not compiled, or an embedding of kind hidden-states"
        )
