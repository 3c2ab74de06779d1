"""Transformer pipelines in miniature: real classes, random weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from typing import Any

import diffusers
import tiny_transformer_denoisers as denoisers
import tiny_transformer_texts as texts
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    CogVideoXDDIMScheduler,
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from module_copies import copied

SIZE = 32  # of pictures, in pixels


@cache
def vae(latent_channels: int = 4, blocks: int = 2, shift: float | None = 0.1) -> AutoencoderKL:
    """Each block but the first makes latents half as large."""
    torch.manual_seed(40)
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=0.5,
        shift_factor=shift,
    ).eval()


@cache
def sana_vae() -> AutoencoderDC:
    """Latents [B, 4, H/4, W/4]."""
    torch.manual_seed(41)
    kinds = ("ResBlock", "ResBlock", "EfficientViTBlock")
    return AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.5,
    ).eval()


@cache
def qwen_vae() -> AutoencoderKLQwenImage:
    """Latents [B, 4, 1, H/4, W/4]."""
    torch.manual_seed(42)
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1] * 4,
        latents_std=[0.9] * 4,
    ).eval()


def flow(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow, shifted towards noise."""
    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **options})


def shifting() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow, shifted by the size of the picture."""
    return flow(use_dynamic_shifting=True)


def _t5() -> dict[str, Any]:
    return {"tokenizer": texts.t5_tokenizer(), "text_encoder": texts.t5()}


def _flux_parts(**more: Any) -> dict[str, Any]:
    return {
        "scheduler": shifting(),
        "vae": vae(),
        "text_encoder": texts.clip(),
        "tokenizer": texts.clip_tokenizer(),
        "text_encoder_2": texts.t5(),
        "tokenizer_2": texts.t5_tokenizer(),
        "transformer": denoisers.flux(),
        **more,
    }


def _qwen_parts(**more: Any) -> dict[str, Any]:
    return {
        "scheduler": shifting(),
        "vae": qwen_vae(),
        "text_encoder": texts.qwen_vl(),
        "tokenizer": texts.qwen_tokenizer(),
        "transformer": denoisers.qwen(),
        **more,
    }


def _sana_parts(**more: Any) -> dict[str, Any]:
    solver = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
    )
    return {
        "tokenizer": texts.gemma_tokenizer(),
        "text_encoder": texts.gemma2(),
        "vae": sana_vae(),
        "transformer": denoisers.sana(),
        "scheduler": solver,
        **more,
    }


def _cogview3_parts() -> dict[str, Any]:
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=4.0,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        beta_schedule="scaled_linear",
    )
    return {**_t5(), "vae": vae(), "transformer": denoisers.cogview3(), "scheduler": scheduler}


def _cogview4_parts(in_channels: int = 4) -> dict[str, Any]:
    tokenizer = deepcopy(texts.byte_tokenizer())
    tokenizer.padding_side = "left"
    return {
        "tokenizer": tokenizer,
        "text_encoder": texts.glm(),
        "vae": vae(),
        "transformer": denoisers.cogview4(in_channels),
        "scheduler": flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
    }


def _lumina2_parts() -> dict[str, Any]:
    return {
        "transformer": denoisers.lumina2(),
        "scheduler": flow(),
        "vae": vae(blocks=4),
        "text_encoder": texts.gemma2(),
        "tokenizer": texts.gemma_tokenizer(),
    }


def _lumina_parts() -> dict[str, Any]:
    return {
        "transformer": denoisers.lumina(),
        "scheduler": flow(),
        "vae": vae(blocks=4),
        "text_encoder": texts.gemma(),
        "tokenizer": texts.gemma_tokenizer(),
    }


def _hidream_parts() -> dict[str, Any]:
    words = texts.clip_tokenizer()
    return {
        "scheduler": flow(),
        "vae": vae(),
        "text_encoder": texts.clip_projected(70, 248),
        "tokenizer": words,
        "text_encoder_2": texts.clip_projected(71, 248),
        "tokenizer_2": words,
        "text_encoder_3": texts.t5(),
        "tokenizer_3": texts.t5_tokenizer(),
        "text_encoder_4": texts.llama(),
        "tokenizer_4": texts.byte_tokenizer(),
        "transformer": denoisers.hidream(),
    }


def _cascade_parts() -> dict[str, Any]:
    return {
        "tokenizer": texts.clip_tokenizer(),
        "text_encoder": texts.clip_projected(72),
        "prior": denoisers.cascade(),
        "scheduler": DDPMWuerstchenScheduler(),
        "resolution_multiple": 8,
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "SanaPipeline": _sana_parts,
    "SanaPAGPipeline": partial(_sana_parts, pag_applied_layers="transformer_blocks.0"),
    "SanaControlNetPipeline": lambda: _sana_parts(controlnet=denoisers.sana_controlnet()),
    "AuraFlowPipeline": lambda: {
        "tokenizer": texts.t5_tokenizer(),
        "text_encoder": texts.umt5(),
        "vae": vae(),
        "transformer": denoisers.auraflow(),
        "scheduler": flow(),
    },
    "CogView3PlusPipeline": _cogview3_parts,
    "CogView4Pipeline": _cogview4_parts,
    "CogView4ControlPipeline": lambda: _cogview4_parts(8),
    "Lumina2Pipeline": _lumina2_parts,
    "LuminaPipeline": _lumina_parts,
    **{
        f"Flux{name}Pipeline": _flux_parts for name in ("", "Img2Img", "Inpaint", "Kontext", "KontextInpaint")
    },
    "FluxControlNetPipeline": lambda: _flux_parts(controlnet=denoisers.flux_controlnet()),
    **{f"QwenImage{name}Pipeline": _qwen_parts for name in ("", "Img2Img", "Inpaint")},
    "QwenImageControlNetPipeline": lambda: _qwen_parts(controlnet=denoisers.qwen_controlnet()),
    "QwenImageControlNetInpaintPipeline": lambda: _qwen_parts(controlnet=denoisers.qwen_controlnet(4)),
    **{
        f"Chroma{name}Pipeline": lambda: {
            **_t5(),
            "scheduler": flow(),
            "vae": vae(),
            "transformer": denoisers.chroma(),
        }
        for name in ("", "Img2Img", "Inpaint")
    },
    "HiDreamImagePipeline": _hidream_parts,
    "OvisImagePipeline": lambda: {
        "scheduler": shifting(),
        "vae": vae(),
        "text_encoder": texts.qwen3(),
        "tokenizer": texts.qwen_tokenizer(),
        "transformer": denoisers.ovis(),
    },
    "LongCatImagePipeline": lambda: {
        "scheduler": shifting(),
        "vae": vae(16),
        "text_encoder": texts.qwen_vl(),
        "tokenizer": texts.qwen_tokenizer(),
        "text_processor": None,
        "transformer": denoisers.longcat(),
    },
    "BriaPipeline": lambda: {
        **_t5(),
        "vae": vae(shift=None),
        "transformer": denoisers.bria(),
        "scheduler": shifting(),
    },
    "StableCascadePriorPipeline": _cascade_parts,
}
"""Components of each pipeline class."""


def build(name: str, **replaced: Any) -> Any:
    """A pipeline of the class of this name over copies of its components, silent."""
    kind = getattr(diffusers, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses a class of its own that it deprecates
        parts = {**PARTS[name](), **replaced}
    pipe = kind(**{part: copied(value) for part, value in parts.items()})
    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe, "default_sample_size"):
        pipe.default_sample_size = SIZE // pipe.vae_scale_factor
    _crop_templates(pipe)
    return pipe


def _crop_templates(pipe: Any) -> None:
    """Tell where a prompt begins in its template: pipelines have that as a number, for a vocabulary that is not this one."""
    if hasattr(pipe, "prompt_template_encode_start_idx"):
        front = pipe.prompt_template_encode.partition("{}")[0]
        pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(front).input_ids)
    if hasattr(pipe, "user_prompt_begin_id"):
        front = pipe._get_messages("")[0].partition("<|im_end|>")[0].rstrip()
        pipe.user_prompt_begin_id = len(pipe.tokenizer(front, add_special_tokens=False).input_ids)
