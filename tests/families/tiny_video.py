"""Video pipelines in miniature: real classes of diffusers and transformers, random weights, a few frames of 16 to 32 pixels.

Sizes are those of diffusers' own tests.
"""

from __future__ import annotations

from typing import Any

import diffusers
import tiny_image_denoisers as pictures
import tiny_image_texts as texts
import tiny_pipelines
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from module_copies import copied
from PIL import Image
from tiny_images import picture
from tiny_video_denoisers import (
    allegro_transformer,
    cogvideox_transformer,
    cosmos_transformer,
    easyanimate_transformer,
    hunyuanvideo_transformer,
    latte_transformer,
    ltx_transformer,
    mochi_transformer,
    motion_adapter,
    motion_unet,
    sparse_controlnet,
    wan_transformer,
)
from tiny_video_texts import llama, qwen, t5_parts, umt5, vision, vision_processor, word_tokenizer
from tiny_video_vaes import (
    allegro_vae,
    cogvideox_vae,
    cosmos_vae,
    easyanimate_vae,
    hunyuanvideo_vae,
    ltx_vae,
    mochi_vae,
    wan_vae,
)
from torch import nn


def clip_of(frames: int, size: int) -> list[Image.Image]:
    """A video of noise."""
    return [picture(seed, size) for seed in range(frames)]


def pixels(frames: int, size: int) -> torch.Tensor:
    """A video of noise [1, 3, F, H, W] in 0..1."""
    return torch.rand(1, 3, frames, size, size, generator=torch.Generator().manual_seed(0))


def half_mask(frames: int, size: int) -> torch.Tensor:
    """A mask [1, 1, F, H, W]: the left half is to be painted anew."""
    mask = torch.zeros(1, 1, frames, size, size)
    mask[..., : size // 2] = 255
    return mask


def pipeline(name: str, **components: Any) -> Any:
    """A pipeline over copies of the components, silent."""
    pipe = getattr(diffusers, name)(**{key: copied(part) for key, part in components.items()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogvideox(name: str = "CogVideoXPipeline", scheduler: Any = None) -> Any:
    """CogVideoX."""
    channels = 4 if name in ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline") else 8
    return pipeline(
        name,
        **t5_parts(),
        vae=cogvideox_vae(),
        transformer=cogvideox_transformer(channels),
        scheduler=scheduler
        or CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )


def animatediff(name: str = "AnimateDiffPipeline") -> Any:
    """AnimateDiff."""
    xl = "SDXL" in name
    parts = {
        "vae": pictures.vae(),
        "text_encoder": texts.clip(),
        "tokenizer": texts.clip_tokenizer(),
        "unet": motion_unet(xl),
        "motion_adapter": motion_adapter(),
        "scheduler": tiny_pipelines.ddim(),
    }
    if xl:
        parts |= {
            "tokenizer_2": texts.clip_tokenizer(),
            "text_encoder_2": texts.clip_projected(),
        }
    if "Sparse" in name:
        parts["controlnet"] = sparse_controlnet()
    elif "ControlNet" in name:
        parts["controlnet"] = pictures.sd_controlnet()
    if "PAG" in name:
        parts["pag_applied_layers"] = ["mid"]
    return pipeline(name, **parts)


def ltx(name: str = "LTXPipeline") -> Any:
    """LTX-Video."""
    return pipeline(
        name,
        **t5_parts(),
        vae=ltx_vae(),
        transformer=ltx_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def latte() -> Any:
    """Latte."""
    return pipeline(
        "LattePipeline",
        **t5_parts(),
        vae=pictures.vae(),
        transformer=latte_transformer(),
        scheduler=tiny_pipelines.ddim(),
    )


def mochi() -> Any:
    """Mochi."""
    return pipeline(
        "MochiPipeline",
        **t5_parts(),
        vae=mochi_vae(),
        transformer=mochi_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )


def allegro() -> Any:
    """Allegro."""
    return pipeline(
        "AllegroPipeline",
        **t5_parts(),
        vae=allegro_vae(),
        transformer=allegro_transformer(),
        scheduler=DDIMScheduler(clip_sample=False),
    )


def wan(name: str = "WanPipeline", scheduler: Any = None, **options: Any) -> Any:
    """Wan, and what is built like it."""
    parts: dict[str, Any] = {
        "tokenizer": texts.t5_tokenizer(),
        "text_encoder": umt5(),
        "vae": wan_vae(),
        "scheduler": scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        "transformer": wan_transformer(),
    }
    if name.startswith("SkyReels"):
        parts["transformer"] = wan_transformer(cls=SkyReelsV2Transformer3DModel)
    if name == "LucyEditPipeline":
        parts["transformer"] = wan_transformer(in_channels=32)
    if name == "WanVACEPipeline":
        layers = {"vace_layers": (0,), "vace_in_channels": 96}
        parts["transformer"] = wan_transformer(cls=WanVACETransformer3DModel, **layers)
    if "ImageToVideo" in name:
        cls = SkyReelsV2Transformer3DModel if name.startswith("SkyReels") else WanTransformer3DModel
        parts["transformer"] = wan_transformer(cls=cls, in_channels=36, image_dim=16, added_kv_proj_dim=24)
        parts |= {"image_encoder": vision(), "image_processor": vision_processor()}
    return pipeline(name, **{**parts, **options})


def wan_with_two_transformers(ratio: float = 0.7, scheduler: Any = None) -> Any:
    """Wan 2.2."""
    return wan(scheduler=scheduler, transformer_2=wan_transformer(53), boundary_ratio=ratio)


def hunyuanvideo(name: str = "HunyuanVideoPipeline") -> Any:
    """HunyuanVideo."""
    return pipeline(
        name,
        tokenizer=word_tokenizer(),
        text_encoder=llama(),
        tokenizer_2=texts.clip_tokenizer(),
        text_encoder_2=texts.clip(),
        vae=hunyuanvideo_vae(),
        transformer=hunyuanvideo_transformer(8 if "ImageToVideo" in name else 4),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


class AllIsSafe(diffusers.ModelMixin):
    """Stands in for Cosmos' own guardrail, whose weights tests do without."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def cosmos(name: str = "CosmosTextToWorldPipeline") -> Any:
    """Cosmos 1."""
    return pipeline(
        name,
        **t5_parts(),
        vae=cosmos_vae(),
        transformer=cosmos_transformer(5 if "Video" in name else 4),
        scheduler=EDMEulerScheduler(sigma_max=20.0, final_sigmas_type="sigma_min"),
        safety_checker=AllIsSafe(),
    )


def easyanimate(name: str = "EasyAnimatePipeline") -> Any:
    """EasyAnimate."""
    channels = 9 if name == "EasyAnimateInpaintPipeline" else 4
    return pipeline(
        name,
        tokenizer=word_tokenizer(),
        text_encoder=qwen(),
        vae=easyanimate_vae(),
        transformer=easyanimate_transformer(channels),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
