"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, [uncond; cond].

What else variants give the UNet (ControlNet, T2I-Adapter, depth, boxes) is copied with the conditional row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any, ClassVar, Final

import torch
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

from sldcore.errors import ConceptError, GuidanceError
from sldcore.families.base import TextOptions, TextSpace
from sldcore.families.pag import PerturbedAttention

_PLACEHOLDER: Final = "a"
MASK: Final = 0
"""The id that stands in a masked token's place, as in SAFREE's code: CLIP's ``!``."""


class MasksClipTokens:
    """:class:`sldcore.families.base.MasksTokens` for pipelines whose text encoders are CLIP's, one or several.

    A masked prompt keeps its length and the places of all other tokens. Padding is left out: CLIP's attention is causal, so
    that nothing behind the end token reaches it.
    """

    clip_suffixes: ClassVar[tuple[str, ...]] = ("",)
    """What the names of the encoders and of their tokenizers end with."""

    def clip_states(self, encoder: Any, output: Any, skip: int | None) -> Tensor:
        """Of an encoder's output with all hidden states, those [n, L, D] that the denoiser is given."""
        if skip is None:
            return output.last_hidden_state  # type: ignore[no-any-return]
        model = getattr(encoder, "text_model", encoder)  # one level less in transformers 5
        return model.final_layer_norm(output.hidden_states[-(skip + 1)])  # type: ignore[no-any-return]

    def pooled_argument(self, output: Any) -> str | None:
        """The text argument that an encoder's pooled output, its ``text_embeds``, goes into; None if none does."""
        return None

    def text_spaces(self, pipe: Any, texts: Sequence[str], options: TextOptions) -> tuple[TextSpace, ...]:
        """The states of the texts' end tokens; the same texts for all encoders."""
        each = [[_ids(pipe, tokenizer, text) for text in texts] for _, tokenizer in self._encoders(pipe)]
        return self._spaces(pipe, each, options)

    def masked_spaces(
        self, pipe: Any, prompts: Mapping[str, str], options: TextOptions
    ) -> tuple[TextSpace, ...]:
        """The states of the end token, each of the prompt's own tokens masked once; one batch for each encoder."""
        given = (prompts["prompt"], prompts.get("prompt_2") or prompts["prompt"])
        whole = [
            _ids(pipe, tokenizer, text)
            for text, (_, tokenizer) in zip(given, self._encoders(pipe), strict=False)
        ]
        masked = [
            [[*ids[:place], MASK, *ids[place + 1 :]] for place in range(1, len(ids) - 1)] for ids in whole
        ]
        return self._spaces(pipe, masked, options)

    def _encoders(self, pipe: Any) -> list[tuple[Any, Any]]:
        """The pipeline's text encoders and their tokenizers.

        Raises:
            GuidanceError: there are none, or they are not CLIP's.
        """
        found: list[tuple[Any, Any]] = [
            (encoder, getattr(pipe, f"tokenizer{suffix}", None))
            for suffix in self.clip_suffixes
            if (encoder := getattr(pipe, f"text_encoder{suffix}", None)) is not None
        ]
        if not found or not all(_is_clip(encoder) for encoder, _ in found):
            kinds = ", ".join(type(encoder).__name__ for encoder, _ in found) or "none"
            raise GuidanceError(
                f"prompts are masked by a pipeline's CLIP text encoders, and this {type(pipe).__name__} has {kinds}; use a "
                f"Stable Diffusion pipeline and keep its text encoders loaded, or another guidance method"
            )
        return found

    def _spaces(
        self, pipe: Any, rows: Sequence[list[list[int]]], options: TextOptions
    ) -> tuple[TextSpace, ...]:
        """For each encoder the space of its states, and that of its pooled output where the denoiser takes it."""
        spaces, pooled, start = [], [], 0
        for (encoder, tokenizer), ids in zip(self._encoders(pipe), rows, strict=True):
            states, output = self._end_states(pipe, encoder, tokenizer, ids, options)
            stop = start + states.shape[1]
            spaces.append(TextSpace("encoder_hidden_states", (start, stop), states, (1, 1 + len(ids))))
            start = stop
            if argument := self.pooled_argument(output):
                vectors = output.text_embeds[: len(ids)]
                pooled.append(TextSpace(argument, (0, vectors.shape[1]), vectors, None))
        return (*spaces, *pooled)

    def _end_states(
        self, pipe: Any, encoder: Any, tokenizer: Any, rows: list[list[int]], options: TextOptions
    ) -> tuple[Tensor, Any]:
        """The states [n, D] of the end token of some rows of ids, and the encoder's whole output."""
        given = options.arguments()
        ends = [len(ids) - 1 for ids in rows]
        taken = rows or [
            [tokenizer.bos_token_id, tokenizer.eos_token_id]
        ]  # so that widths are known without any
        length = max(map(len, taken))
        padded = [ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids in taken]
        with torch.no_grad(), _lora_scaled(encoder, given.get("lora_scale")):
            output = encoder(torch.tensor(padded, device=pipe._execution_device), output_hidden_states=True)
            states = self.clip_states(encoder, output, given.get("clip_skip"))
        return states[list(range(len(rows))), ends], output


class StableDiffusion(MasksClipTokens, PerturbedAttention):
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


def _is_clip(encoder: Any) -> bool:
    return "clip" in getattr(getattr(encoder, "config", None), "model_type", "")


def _ids(pipe: Any, tokenizer: Any, text: str) -> list[int]:
    """The ids of a prompt as the pipeline encodes it, begin and end included, cut to the encoder's window."""
    convert = getattr(
        pipe, "maybe_convert_prompt", None
    )  # words of textual inversion that are several tokens
    text = convert(text, tokenizer) if convert else text
    return list(tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids)


@contextmanager
def _lora_scaled(encoder: nn.Module, scale: float | None) -> Iterator[None]:
    """Inside the block, LoRA in the text encoder has the call's scale, as while the pipeline encodes its prompts."""
    with ExitStack() as after:
        if scale is not None and USE_PEFT_BACKEND:
            scale_lora_layers(encoder, scale)
            after.callback(unscale_lora_layers, encoder, scale)
        yield
