"""Stable Diffusion in miniature: real diffusers and transformers classes, random weights, 32 x 32 pictures.

The sizes are those of diffusers' own tests. Cross-attention is made stronger than at initialisation, because a UNet that
ignores its text would pass any test of guidance.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from module_copies import copied
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sldcore.concepts import load_pack
from sldcore.playground.architecture import build_tokenizer

PROMPTS = ("a red knight on a meadow", "a blue cat in the snow", "a crowd at night", "a boat and a flower")
STABLE_DIFFUSION: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
WIDTH = 32


def ddim(**options: Any) -> DDIMScheduler:
    """Stable Diffusion's noise schedule and default solver."""
    return DDIMScheduler(**{**STABLE_DIFFUSION, "clip_sample": False, "set_alpha_to_one": False, **options})


def unet(in_channels: int = 4, **options: Any) -> UNet2DConditionModel:
    """A UNet that listens to its text."""
    torch.manual_seed(1)
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "attn2.to_" in name:
                weight.mul_(3)
    return model.eval()


def vae() -> AutoencoderKL:
    """Latents [B, 4, 16, 16] to pictures [B, 3, 32, 32] and back."""
    torch.manual_seed(2)
    model = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    return model.eval()


def tokenizer() -> CLIPTokenizer:
    """A vocabulary in which the default concept fits into CLIP's window."""
    pack = load_pack("inappropriate")
    texts = [*PROMPTS, pack.whole().text, *(concept.text for concept in pack.concepts)]
    return build_tokenizer(texts * 20)


def text_encoder(vocabulary: CLIPTokenizer) -> CLIPTextModel:
    """Hidden states [B, 77, 32]."""
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id,
    )
    model = CLIPTextModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("token_embedding.weight"):
                weight.mul_(20)  # words matter more than positions, as in a trained model
    return model.eval()


def parts() -> dict[str, Any]:
    """The components of a pipeline without scheduler and safety checker."""
    words = tokenizer()
    return {"vae": vae(), "text_encoder": text_encoder(words), "tokenizer": words, "unet": unet()}


def pipeline(cls: type = StableDiffusionPipeline, /, **components: Any) -> Any:
    """A pipeline over copies of the components, which nobody may change; silent, without what is not given."""
    copies = {name: copied(part) for name, part in components.items()}
    copies.setdefault("scheduler", ddim())
    absent = {"safety_checker": None, "feature_extractor": None}
    pipe = cls(**{**absent, **copies, "requires_safety_checker": copies.get("safety_checker") is not None})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(batch: int, seed: int = 0, channels: int = 4, size: int = 16) -> torch.Tensor:
    """Noise [B, C, H, W] to start from."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))
