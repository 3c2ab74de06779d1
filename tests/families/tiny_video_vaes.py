"""Autoencoders of video pipelines in miniature: real classes, random weights."""

from __future__ import annotations

from functools import cache

import torch
from diffusers import (
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    AutoencoderKLWan,
)


@cache
def cogvideox_vae() -> AutoencoderKLCogVideoX:
    """Latents [B, 4, 2, 2, 2] for 5 frames of 16 x 16."""
    torch.manual_seed(40)
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()


@cache
def ltx_vae() -> AutoencoderKLLTXVideo:
    """Latents [B, 8, 3, 8, 8] for 9 frames of 32 x 32."""
    torch.manual_seed(44)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return vae.eval()


@cache
def mochi_vae() -> AutoencoderKLMochi:
    """Latents [B, 12, 2, 2, 2] for 7 frames of 16 x 16."""
    torch.manual_seed(47)
    return AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


@cache
def allegro_vae() -> AutoencoderKLAllegro:
    """Latents [B, 4, 2, 2, 2] for 8 frames of 16 x 16."""
    torch.manual_seed(49)
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    vae.enable_tiling()
    return vae.eval()


@cache
def wan_vae() -> AutoencoderKLWan:
    """Latents [B, 16, 2, 2, 2] for 5 frames of 16 x 16."""
    torch.manual_seed(51)
    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


@cache
def hunyuanvideo_vae() -> AutoencoderKLHunyuanVideo:
    """Latents [B, 4, 2, 2, 2] for 5 frames of 16 x 16."""
    torch.manual_seed(54)
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


@cache
def cosmos_vae() -> AutoencoderKLCosmos:
    """Latents [B, 4, 2, 2, 2] for 9 frames of 16 x 16."""
    torch.manual_seed(58)
    return AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        scaling_factor=1.0,
        spatial_compression_ratio=8,
        temporal_compression_ratio=8,
        latents_mean=None,
        latents_std=None,
    ).eval()


@cache
def easyanimate_vae() -> AutoencoderKLMagvit:
    """Latents [B, 4, 2, 2, 2] for 5 frames of 16 x 16."""
    torch.manual_seed(56)
    vae = AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    vae.register_to_config(cache_mag_vae=True)  # as checkpoints have it
    return vae.eval()
