"""Stable Diffusion 1.x and 2.x, ControlNet variants included: one CLIP text encoder, a UNet, [uncond; cond]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sldcore.families.base import TextOptions
from sldcore.families.noise import discrete_schedule
from sldcore.types import Schedule


class StableDiffusion:
    """Text goes into the UNet as ``encoder_hidden_states`` [2B, L, D]."""

    name = "stable-diffusion"
    pipelines: tuple[str, ...] = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
    )
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
        return discrete_schedule(pipe.scheduler, pipe.num_timesteps)

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
