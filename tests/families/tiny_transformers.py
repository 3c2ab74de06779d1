"""Transformer pipelines in miniature: real classes, random weights, made to listen to their text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from typing import Any

import diffusers
import tiny_transformer_texts as texts
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    LongCatImageTransformer2DModel,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    OvisImageTransformer2DModel,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
    SanaControlNetModel,
    SanaTransformer2DModel,
    StableCascadeUNet,
)
from torch import nn

WIDTH = texts.WIDTH
SIZE = 32  # of pictures, in pixels


TEXT = ("context_embedder", "caption", "text_proj", "txt_in", "kv_mapper", "attention.to_out")
"""In the names of weights that a text meets first."""


def listening(model: nn.Module, seed: int, gain: float = 1.0, text: float = 1.0) -> Any:
    """``model`` with all its weights drawn anew, layers that are zero at initialisation among them."""
    generator = torch.Generator().manual_seed(seed)

    def noise(weight: torch.Tensor) -> torch.Tensor:
        return torch.randn(weight.shape, generator=generator)

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                fan_in = weight[0].numel()
                louder = text if any(each in name for each in TEXT) else 1.0
                weight.copy_(noise(weight) * gain * louder * fan_in**-0.5)
            elif "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.1 * noise(weight))
            else:
                weight.copy_(0.1 * noise(weight))
    return model.eval()


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


# --- denoisers -------------------------------------------------------------------------------------------------

FLUX_LIKE: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 4, 8),
}
SANA: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": WIDTH,
    "sample_size": 32,
}
QWEN: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (8, 4, 4),
}


@cache
def sana() -> Any:
    return listening(SanaTransformer2DModel(**SANA), 50)


@cache
def sana_controlnet() -> Any:
    return listening(SanaControlNetModel(**{**SANA, "num_layers": 1}), 51)


@cache
def auraflow() -> Any:
    model = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return listening(model, 52, 1.2, text=3.0)


COGVIEW: dict[str, Any] = {
    "patch_size": 2,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "out_channels": 4,
    "text_embed_dim": WIDTH,
    "time_embed_dim": 16,
    "condition_dim": 8,
    "pos_embed_max_size": 16,
    "sample_size": 16,
}


@cache
def cogview3() -> Any:
    return listening(CogView3PlusTransformer2DModel(in_channels=4, **COGVIEW), 53, text=3.0)


@cache
def cogview4(in_channels: int = 4) -> Any:
    model = CogView4Transformer2DModel(in_channels=in_channels, rope_axes_dim=(16, 16), **COGVIEW)
    return listening(model, 54, text=3.0)


@cache
def lumina2() -> Any:
    model = Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(600, 64, 64),
        cap_feat_dim=WIDTH,
    )
    return listening(model, 55, text=3.0)


@cache
def lumina() -> Any:
    model = LuminaNextDiT2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=WIDTH,
    )
    return listening(model, 56, text=3.0)


@cache
def flux(guidance: bool = True) -> Any:
    model = FluxTransformer2DModel(
        **FLUX_LIKE, pooled_projection_dim=WIDTH, guidance_embeds=guidance, out_channels=16
    )
    return listening(model, 57)


@cache
def flux_controlnet() -> Any:
    return listening(
        FluxControlNetModel(**FLUX_LIKE, pooled_projection_dim=WIDTH, guidance_embeds=True), 58, 0.5
    )


@cache
def qwen() -> Any:
    return listening(QwenImageTransformer2DModel(**QWEN), 59, text=3.0)


@cache
def qwen_controlnet(extra: int = 0) -> Any:
    return listening(QwenImageControlNetModel(**QWEN, extra_condition_channels=extra), 60, 0.5)


@cache
def chroma() -> Any:
    approximator = {
        "approximator_num_channels": 16,
        "approximator_hidden_dim": WIDTH,
        "approximator_layers": 1,
    }
    model = ChromaTransformer2DModel(**FLUX_LIKE, **approximator)
    model.register_to_config(guidance_embeds=False)  # as the published models' files say
    return listening(model, 61)


@cache
def hidream() -> Any:
    model = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=4,
        num_activated_experts=4,  # all, so that nothing hangs on which of two is a little stronger
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    )
    return listening(model, 62)


@cache
def ovis() -> Any:
    return listening(OvisImageTransformer2DModel(**FLUX_LIKE, out_channels=16), 63, text=3.0)


@cache
def longcat() -> Any:
    options = {**FLUX_LIKE, "in_channels": 64, "axes_dims_rope": [4, 4, 8]}
    model = LongCatImageTransformer2DModel(**options, pooled_projection_dim=WIDTH)
    return listening(model, 64, 1.3, text=5.0)


@cache
def bria() -> Any:
    options = {**FLUX_LIKE, "axes_dims_rope": [0, 8, 8]}
    return listening(BriaTransformer2DModel(**options), 65, text=3.0)


@cache
def cascade() -> Any:
    model = StableCascadeUNet(
        conditioning_dim=WIDTH,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        switch_level=(False,),
        clip_image_in_channels=8,
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
        timestep_ratio_embedding_dim=16,
    )
    return listening(model, 66, 0.5, text=6.0)


# --- pipelines -------------------------------------------------------------------------------------------------


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
        "transformer": flux(),
        **more,
    }


def _qwen_parts(**more: Any) -> dict[str, Any]:
    return {
        "scheduler": shifting(),
        "vae": qwen_vae(),
        "text_encoder": texts.qwen_vl(),
        "tokenizer": texts.qwen_tokenizer(),
        "transformer": qwen(),
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
        "transformer": sana(),
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
    return {**_t5(), "vae": vae(), "transformer": cogview3(), "scheduler": scheduler}


def _cogview4_parts(in_channels: int = 4) -> dict[str, Any]:
    tokenizer = deepcopy(texts.byte_tokenizer())
    tokenizer.padding_side = "left"
    return {
        "tokenizer": tokenizer,
        "text_encoder": texts.glm(),
        "vae": vae(),
        "transformer": cogview4(in_channels),
        "scheduler": flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75),
    }


def _lumina2_parts() -> dict[str, Any]:
    return {
        "transformer": lumina2(),
        "scheduler": flow(),
        "vae": vae(blocks=4),
        "text_encoder": texts.gemma2(),
        "tokenizer": texts.gemma_tokenizer(),
    }


def _lumina_parts() -> dict[str, Any]:
    return {
        "transformer": lumina(),
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
        "transformer": hidream(),
    }


def _cascade_parts() -> dict[str, Any]:
    return {
        "tokenizer": texts.clip_tokenizer(),
        "text_encoder": texts.clip_projected(72),
        "prior": cascade(),
        "scheduler": DDPMWuerstchenScheduler(),
        "resolution_multiple": 8,
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "SanaPipeline": _sana_parts,
    "SanaPAGPipeline": partial(_sana_parts, pag_applied_layers="transformer_blocks.0"),
    "SanaControlNetPipeline": lambda: _sana_parts(controlnet=sana_controlnet()),
    "AuraFlowPipeline": lambda: {
        "tokenizer": texts.t5_tokenizer(),
        "text_encoder": texts.umt5(),
        "vae": vae(),
        "transformer": auraflow(),
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
    "FluxControlNetPipeline": lambda: _flux_parts(controlnet=flux_controlnet()),
    **{f"QwenImage{name}Pipeline": _qwen_parts for name in ("", "Img2Img", "Inpaint")},
    "QwenImageControlNetPipeline": lambda: _qwen_parts(controlnet=qwen_controlnet()),
    "QwenImageControlNetInpaintPipeline": lambda: _qwen_parts(controlnet=qwen_controlnet(4)),
    **{
        f"Chroma{name}Pipeline": lambda: {
            **_t5(),
            "scheduler": flow(),
            "vae": vae(),
            "transformer": chroma(),
        }
        for name in ("", "Img2Img", "Inpaint")
    },
    "HiDreamImagePipeline": _hidream_parts,
    "OvisImagePipeline": lambda: {
        "scheduler": shifting(),
        "vae": vae(),
        "text_encoder": texts.qwen3(),
        "tokenizer": texts.qwen_tokenizer(),
        "transformer": ovis(),
    },
    "LongCatImagePipeline": lambda: {
        "scheduler": shifting(),
        "vae": vae(16),
        "text_encoder": texts.qwen_vl(),
        "tokenizer": texts.qwen_tokenizer(),
        "text_processor": None,
        "transformer": longcat(),
    },
    "BriaPipeline": lambda: {**_t5(), "vae": vae(shift=None), "transformer": bria(), "scheduler": shifting()},
    "StableCascadePriorPipeline": _cascade_parts,
}
"""Components of each pipeline class."""


def build(name: str, **replaced: Any) -> Any:
    """A pipeline of the class of this name over copies of its components, silent."""
    kind = getattr(diffusers, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers uses a class of its own that it deprecates
        parts = {**PARTS[name](), **replaced}
    pipe = kind(**{part: deepcopy(value) for part, value in parts.items()})
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
