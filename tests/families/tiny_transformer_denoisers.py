"""Denoisers of transformer pipelines in miniature: random weights, made to listen to their text."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
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
from tiny_transformer_texts import WIDTH
from torch import nn

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
