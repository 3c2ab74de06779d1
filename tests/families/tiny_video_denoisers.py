"""Denoisers of video pipelines in miniature: real classes, random weights.

They are initialised anew, because at their own initialisation some layers are zero and cross-attention is so weak that a
model hardly hears its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers
import tiny_image_denoisers as pictures
import tiny_image_texts as texts
import torch
from diffusers import (
    AllegroTransformer3DModel,
    CogVideoXTransformer3DModel,
    CosmosTransformer3DModel,
    EasyAnimateTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LatteTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    MotionAdapter,
    SparseControlNetModel,
    WanTransformer3DModel,
)
from tiny_video_texts import WIDTH, awake

TOKENS = 16
"""Tokens of text that denoisers are given, so that a few words are not lost among padding."""


@cache
def cogvideox_transformer(in_channels: int = 4) -> CogVideoXTransformer3DModel:
    """v over latents [B, F, 4, H, W]."""
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=True,
    )
    return awake(model, 41, 3.0, ("text_proj",))


@cache
def motion_adapter() -> MotionAdapter:
    """Makes a UNet of pictures one of videos."""
    torch.manual_seed(42)
    model = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    return awake(model, 42)


@cache
def motion_unet(xl: bool = False) -> Any:
    """Epsilon over latents [B, 4, F, H, W]."""
    unet = pictures.sdxl_unet() if xl else pictures.unet()
    return diffusers.UNetMotionModel.from_unet2d(unet, motion_adapter()).eval()


@cache
def sparse_controlnet() -> SparseControlNetModel:
    """A ControlNet for some of the frames, whose residuals are not zero."""
    model = SparseControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        in_channels=4,
        conditioning_channels=3,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        cross_attention_dim=texts.WIDTH,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(8, 16),
        norm_num_groups=4,
        use_simplified_condition_embedding=False,
        motion_num_attention_heads=2,
    )
    torch.manual_seed(43)
    return awake(model, 43)


@cache
def ltx_transformer() -> LTXVideoTransformer3DModel:
    """Flow over latents [B, S, 8]."""
    model = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    return awake(model, 45, 3.0, ("caption_projection", "attn2"))


@cache
def latte_transformer() -> LatteTransformer3DModel:
    """Epsilon and variance over latents [B, 4, F, H, W]."""
    model = LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        video_length=2,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return awake(model, 46, 2.0, ("caption_projection", "attn2"))


@cache
def mochi_transformer() -> MochiTransformer3DModel:
    """Inverted flow over latents [B, 12, F, H, W]."""
    model = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=TOKENS,
    )
    return awake(model, 48, 3.0, ("caption_proj", "time_embed.pooler"))


@cache
def allegro_transformer() -> AllegroTransformer3DModel:
    """Epsilon over latents [B, 4, F, H, W]."""
    model = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=WIDTH,
    )
    return awake(model, 50, 2.0, ("caption_projection", "attn2"))


WAN: Mapping[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": 16,
    "text_dim": WIDTH,
    "freq_dim": 64,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


@cache
def wan_transformer(seed: int = 52, cls: type = WanTransformer3DModel, **options: Any) -> Any:
    """Flow over latents [B, 16, F, H, W]."""
    model = cls(**{"in_channels": 16, **WAN, **options})
    return awake(model, seed, 3.0, ("text_embedder", "attn2"))


@cache
def hunyuanvideo_transformer(in_channels: int = 4) -> HunyuanVideoTransformer3DModel:
    """Flow over latents [B, 4, F, H, W]; the guidance scale is an input."""
    model = HunyuanVideoTransformer3DModel(
        in_channels=in_channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=32,
        pooled_projection_dim=texts.WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    return awake(model, 55, 2.0, ("context_embedder.proj_in",))


@cache
def cosmos_transformer(in_channels: int = 4) -> CosmosTransformer3DModel:
    """What EDM makes x0 of, over latents [B, 4, F, H, W]."""
    model = CosmosTransformer3DModel(
        in_channels=in_channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,  # would need torchvision
    )
    return awake(model, 59, 3.0, ("attn2",))


@cache
def easyanimate_transformer(in_channels: int = 4) -> EasyAnimateTransformer3DModel:
    """Flow over latents [B, 4, F, H, W]."""
    model = EasyAnimateTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=1,
        sample_width=16,
        sample_height=16,
        patch_size=2,
    )
    return awake(model, 57, 3.0, ("text_proj",))
