"""The playground model's parts, as real diffusers and transformers classes with small sizes.

The result is a Stable Diffusion 1.x pipeline in every respect but size: CLIP text encoder and byte-level BPE
tokenizer with a window of 77 tokens, UNet with cross-attention that predicts epsilon, VAE that shrinks by 8,
DDIM.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WINDOW: Final = 77
WIDTH: Final = 96
VOCABULARY: Final = 1536
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def build_vae() -> AutoencoderKL:
    """64 x 64 pictures to 8 channels of 8 x 8, and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 48, 96, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
    )


def build_unet() -> UNet2DConditionModel:
    """Noise prediction on [B, 8, 8, 8] latents, cross-attention at both resolutions."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Hidden states [B, 77, 96] from token ids [B, 77]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_tokenizer(corpus: Iterable[str]) -> CLIPTokenizer:
    """Learn a CLIP-style byte-level BPE vocabulary on ``corpus``; text outside it falls back to bytes."""
    learner = CLIPTokenizer().backend_tokenizer
    alphabet = _byte_alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), BEGIN, END]
    with TemporaryDirectory() as folder:
        vocabulary, merge_list = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(
            json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8"
        )
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        merge_list.write_text("\n".join(lines) + "\n", encoding="utf-8")
        loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=WINDOW)
    return loaded


def build_pipeline(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
) -> StableDiffusionPipeline:
    """The parts as one pipeline, without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _byte_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())
