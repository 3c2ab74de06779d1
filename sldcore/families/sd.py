"""Stable Diffusion 1.x and 2.x, ControlNet variants included: one CLIP text encoder, a UNet, [uncond; cond]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import get_ident
from typing import Any, Final

import torch
from torch import Tensor, nn

from sldcore.errors import ConceptError
from sldcore.families.base import TextOptions
from sldcore.families.noise import discrete_schedule
from sldcore.types import Schedule

_PLACEHOLDER: Final = "a"


class StableDiffusion:
    """Text goes into the UNet as ``encoder_hidden_states`` [2B, L, D]."""

    name = "stable-diffusion"
    latents_argument = "sample"
    text_arguments: tuple[str, ...] = ("encoder_hidden_states",)
    cond_first = False

    def denoiser(self, pipe: Any) -> nn.Module:
        """The UNet."""
        unet: nn.Module = pipe.unet
        return unet

    def is_guiding(self, pipe: Any) -> bool:
        """The pipeline's own property."""
        return bool(pipe.do_classifier_free_guidance)

    def schedule(self, pipe: Any) -> Schedule:
        """The last ``num_timesteps`` of the scheduler's timesteps (img2img skips the first)."""
        schedule = self.noise_schedule(pipe.scheduler, pipe.num_timesteps)
        return replace(schedule, guidance_scale=float(pipe.guidance_scale))

    def noise_schedule(self, scheduler: Any, calls: int) -> Schedule:
        """Variance-preserving, with a table of alpha_bar."""
        return discrete_schedule(scheduler, calls)

    def window(self, pipe: Any) -> int:
        """77 for CLIP."""
        return int(pipe.tokenizer.model_max_length)

    def count_tokens(self, pipe: Any, text: str) -> int:
        """Tokens without truncation."""
        return len(pipe.tokenizer(text, truncation=False, verbose=False).input_ids)

    def text_options(self, pipe: Any) -> TextOptions:
        """The call's ``clip_skip`` and the ``scale`` of its ``cross_attention_kwargs``."""
        return TextOptions(pipe.clip_skip, (pipe.cross_attention_kwargs or {}).get("scale"))

    @torch.no_grad()
    def encode(self, pipe: Any, texts: Sequence[str], options: TextOptions) -> Mapping[str, Tensor]:
        """Hidden states [len(texts), 77, D], each text encoded alone as the reference does."""
        device = pipe._execution_device
        states = [pipe.encode_prompt(text, device, 1, False, **options._asdict())[0] for text in texts]
        return {"encoder_hidden_states": torch.cat(states)}

    def text_vectors(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """The mean of the states of a text's own tokens, [len(texts), D]: CLIP's pooled state tells short texts apart less well.

        What is beyond the window is cut off, as in the pipeline's own prompts.
        """
        states = self.encode(pipe, texts, TextOptions())["encoder_hidden_states"]  # [N, L, D]
        counts = [min(self.count_tokens(pipe, text), self.window(pipe)) for text in texts]
        own = [state[1 : max(count - 1, 2)] for state, count in zip(states, counts, strict=True)]
        return torch.stack([tokens.mean(0) for tokens in own])

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
        if tokens > self.window(pipe):
            raise ConceptError(
                f"the embedding's {count} tokens and its prefix take {tokens} tokens, and the text encoder's window is "
                f"{self.window(pipe)}; shorten the prefix or use fewer tokens"
            )
        with _replaced_words(pipe.text_encoder.get_input_embeddings(), start, vectors):
            return self.encode(pipe, [text], options)

    def encoder_state(self, pipe: Any) -> tuple[Any, ...]:
        """Identity, type, place and in-place version of every text encoder weight, LoRA in use, and the vocabulary.

        LoRA is scaled, switched off and fused without the weights' versions telling.
        """
        weights = tuple((id(w), w.dtype, w.device, w._version) for w in pipe.text_encoder.parameters())
        lora = tuple(
            (*layer.scaling.items(), *layer.active_adapters, *layer.merged_adapters, layer.disable_adapters)
            for layer in pipe.text_encoder.modules()
            if hasattr(layer, "merged_adapters") and hasattr(layer, "scaling")
        )
        return (id(pipe.text_encoder), id(pipe.tokenizer), len(pipe.tokenizer), hash(weights), hash(lora))


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
