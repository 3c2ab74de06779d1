"""Everything else that diffusers can do around a Stable Diffusion in miniature: pipelines and what to call them with."""

from __future__ import annotations

from typing import Any

import tiny_pipelines
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from diffusers.models.attention_processor import IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection
from peft import LoraConfig, inject_adapter_in_model
from tiny_pipelines import ddim, pipeline
from torch import Tensor


def picture(batch: int = 2) -> Tensor:
    """Pictures [B, 3, 32, 32] in 0..1."""
    return torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(11))


def text_to_image(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return pipeline(**parts), {}


def several_pictures_per_prompt(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return pipeline(**parts), {"num_images_per_prompt": 2, "negative_prompt": ["a boat", "snow"]}


def rescaled_guidance(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return pipeline(**parts), {"guidance_rescale": 0.7}


def v_prediction(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return pipeline(**parts, scheduler=ddim(prediction_type="v_prediction")), {}


def image_to_image(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    call = {"image": picture(), "strength": 0.7, "num_inference_steps": 9}
    return pipeline(StableDiffusionImg2ImgPipeline, **parts), call


def mask() -> Tensor:
    half = torch.zeros(1, 1, 32, 32)
    half[..., :16] = 1
    return half


def inpainting(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    call = {"image": picture(), "mask_image": mask(), "height": 32, "width": 32, "strength": 1.0}
    return pipeline(StableDiffusionInpaintPipeline, **parts), call


def inpainting_with_nine_channels(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    nine = pipeline(StableDiffusionInpaintPipeline, **{**parts, "unet": tiny_pipelines.unet(9)})
    return nine, inpainting(parts)[1]


def controlnet(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(6)
    model = ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(8, 16),
        cross_attention_dim=tiny_pipelines.WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    for weight in model.parameters():  # its last layers begin at zero, so that it would do nothing
        torch.nn.init.normal_(weight, std=0.2)
    call = {"image": picture(), "controlnet_conditioning_scale": 0.5}
    return pipeline(StableDiffusionControlNetPipeline, **parts, controlnet=model.eval()), call


def controlnet_that_guesses(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    pipe, call = controlnet(parts)
    return pipe, {**call, "guess_mode": True}


def ip_adapter(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    pipe = pipeline(**parts)
    torch.manual_seed(7)
    width = tiny_pipelines.WIDTH
    cross = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    weights: dict[str, Tensor] = {}
    for number in range(len(cross)):
        state = IPAdapterAttnProcessor(16, width).state_dict()
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"{2 * number + 1}.{part}.weight"] = 3 * state[f"{part}.0.weight"]
    projection = ImageProjection(width, width, 4).state_dict()
    image_proj = {
        "proj.weight": projection["image_embeds.weight"],
        "proj.bias": projection["image_embeds.bias"],
        "norm.weight": projection["norm.weight"],
        "norm.bias": projection["norm.bias"],
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": image_proj, "ip_adapter": weights}])
    embeds = torch.randn(2, 1, width, generator=torch.Generator().manual_seed(8))
    return pipe, {"ip_adapter_image_embeds": [embeds]}


def with_lora(pipe: Any, name: str = "lora") -> Any:
    """LoRA with random weights in the UNet and the text encoder."""
    torch.manual_seed(9)
    common = {"r": 4, "lora_alpha": 16, "init_lora_weights": False}
    pipe.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_v"], **common), adapter_name=name)
    in_text = LoraConfig(target_modules=["q_proj", "v_proj"], **common)
    inject_adapter_in_model(in_text, pipe.text_encoder, adapter_name=name)
    return pipe


def lora(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return with_lora(pipeline(**parts)), {}


def slicing(parts: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    pipe = pipeline(**parts)
    pipe.enable_attention_slicing(1)
    pipe.vae.enable_slicing()
    return pipe, {}
