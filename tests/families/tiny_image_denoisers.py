"""Denoisers of picture pipelines, and what goes with them, in miniature: random weights.

Sizes are those of diffusers' own tests. Denoisers are made to listen to their text, because one that ignores it would pass
any test of guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    PixArtTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from tiny_image_texts import T5_WIDTH, WIDTH
from torch import nn

SIZE = 32  # of pictures, in pixels; latents have half of that


def listening(model: nn.Module, by: float, names: tuple[str, ...]) -> Any:
    """Weights whose name has one of ``names`` made stronger."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(each in name for each in names):
                weight.mul_(by)
    return model.eval()


def woken(model: nn.Module) -> Any:
    """Weights that are zero at initialisation made random."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("weight") and not weight.any():
                weight.normal_(std=0.1)
    return model.eval()


@cache
def vae(latent_channels: int = 4, blocks: int = 2, **options: Any) -> AutoencoderKL:
    """Latents [B, 4, 16, 16] to pictures [B, 3, 32, 32] and back; each block more makes latents half as large."""
    torch.manual_seed(20)
    return AutoencoderKL(
        block_out_channels=(*(8,) * (blocks - 1), 16),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=SIZE,
        **{"scaling_factor": 0.5, "shift_factor": 0.1, **options},
    ).eval()


BLOCKS: Mapping[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
UNET: Mapping[str, Any] = {
    **BLOCKS,
    "sample_size": SIZE // 2,
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": WIDTH,
}


def _sdxl_conditioning(time_ids: int, pooled: int) -> dict[str, Any]:
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 1),
        "projection_class_embeddings_input_dim": 8 * time_ids + pooled,
        "use_linear_projection": True,
    }


@cache
def unet(in_channels: int = 4, **options: Any) -> UNet2DConditionModel:
    """Stable Diffusion's."""
    torch.manual_seed(21)
    model = UNet2DConditionModel(in_channels=in_channels, **{**UNET, **options})
    return listening(model, 3, ("attn2.to_",))


@cache
def sdxl_unet(
    in_channels: int = 4, width: int = 2 * WIDTH, time_ids: int = 6, **options: Any
) -> UNet2DConditionModel:
    """SDXL's: a pooled text and time ids beside the hidden states."""
    torch.manual_seed(22)
    own = {"cross_attention_dim": width, **_sdxl_conditioning(time_ids, WIDTH)}
    model = UNet2DConditionModel(in_channels=in_channels, **{**UNET, **own, **options})
    return listening(model, 3, ("attn2.to_", "add_embedding.linear_1"))


@cache
def controlnet(cls: type, seed: int, **options: Any) -> Any:
    """A ControlNet whose residuals are not zero."""
    torch.manual_seed(seed)
    model = cls(conditioning_embedding_out_channels=(8, 16), **{**BLOCKS, **options})
    return woken(model)


def sd_controlnet() -> ControlNetModel:
    """For Stable Diffusion."""
    return controlnet(ControlNetModel, 23, cross_attention_dim=WIDTH)


def sdxl_controlnet() -> ControlNetModel:
    """For SDXL."""
    return controlnet(ControlNetModel, 24, cross_attention_dim=2 * WIDTH, **_sdxl_conditioning(6, WIDTH))


def sdxl_controlnet_union() -> ControlNetUnionModel:
    """For SDXL, with six kinds of control."""
    own = {
        "num_trans_channel": 8,
        "num_proj_channel": 8,
        "num_trans_head": 2,
        "cross_attention_dim": 2 * WIDTH,
    }
    return controlnet(ControlNetUnionModel, 25, **own, **_sdxl_conditioning(6, WIDTH))


@cache
def adapter(kind: str) -> T2IAdapter:
    """A T2I-Adapter; ``kind`` is ``full_adapter`` or ``full_adapter_xl``."""
    torch.manual_seed(26)
    factor = 2 if kind == "full_adapter" else 4
    return T2IAdapter(
        in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=factor, adapter_type=kind
    ).eval()


SD3_SIZES: Mapping[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "out_channels": 16,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": T5_WIDTH,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 2 * WIDTH,
    "pos_embed_max_size": 16,
}


@cache
def sd3_transformer(in_channels: int = 16) -> SD3Transformer2DModel:
    """Flow over latents [B, 16, 16, 16]; hidden states of width 64 and a pooled one."""
    torch.manual_seed(27)
    model = SD3Transformer2DModel(in_channels=in_channels, num_layers=3, **SD3_SIZES)
    listening(model, 3, ("context_embedder", "add_"))
    return listening(model, 0.03, ("text_embedder.linear_1",))


@cache
def sd3_controlnet(extra_channels: int = 0) -> SD3ControlNetModel:
    """A ControlNet whose residuals are not zero; the inpainting one has an extra channel of conditioning."""
    torch.manual_seed(28)
    model = SD3ControlNetModel(
        in_channels=16, num_layers=1, extra_conditioning_channels=extra_channels, **SD3_SIZES
    )
    return woken(model)


@cache
def pixart_transformer() -> PixArtTransformer2DModel:
    """Epsilon and variance, 8 channels, over latents [B, 4, 16, 16]."""
    torch.manual_seed(29)
    model = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=T5_WIDTH,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return listening(model, 2, ("attn2.to_", "caption_projection"))


HUNYUAN: Mapping[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "in_channels": 4,
    "cross_attention_dim": WIDTH,
    "cross_attention_dim_t5": T5_WIDTH,
    "pooled_projection_dim": 16,
    "hidden_size": 24,
    "activation_fn": "gelu-approximate",
}


@cache
def hunyuan_transformer() -> HunyuanDiT2DModel:
    """Epsilon (or v) and variance, 8 channels, over latents [B, 4, 8, 8]."""
    torch.manual_seed(30)
    model = HunyuanDiT2DModel(num_layers=4, **HUNYUAN)
    return listening(model, 3, ("attn2.to_", "text_embedder", "extra_embedder", "proj_out"))


@cache
def hunyuan_controlnet() -> HunyuanDiT2DControlNetModel:
    """A ControlNet whose residuals are not zero."""
    torch.manual_seed(31)
    return woken(HunyuanDiT2DControlNetModel(transformer_num_layers=4, **HUNYUAN))
