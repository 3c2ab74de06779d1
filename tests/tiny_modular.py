"""Modular pipelines in miniature: diffusers' own blocks over random weights, which classic pipelines of the family tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "families"))

import diffusers
import tiny_images
import tiny_transformer_texts as texts
import tiny_transformers
import tiny_video
import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo15,
    Flux2Transformer2DModel,
    HunyuanVideo15Transformer3DModel,
    ZImageTransformer2DModel,
)
from tiny_transformer_denoisers import listening
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

DENOISERS = ("unet", "transformer", "transformer_2")


def modular(blocks: str, components: Mapping[str, Any], **configs: Any) -> Any:
    """A modular pipeline of the blocks of this name, silent, with denoisers and a scheduler of its own."""
    pipe = getattr(diffusers, blocks)().init_pipeline()
    wanted = {name: part for name, part in components.items() if name in pipe._component_specs}
    own = {
        name: deepcopy(part) if name in (*DENOISERS, "scheduler") else part for name, part in wanted.items()
    }
    pipe.update_components(**own, **configs)
    for block in blocks_of(pipe._blocks):
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
    return pipe


def blocks_of(block: Any) -> list[Any]:
    """A block and all inside it."""
    return [block, *(each for sub in getattr(block, "sub_blocks", {}).values() for each in blocks_of(sub))]


@cache
def qwen3_of_many_layers() -> Qwen3ForCausalLM:
    """States [B, L, 32] of 27 layers, three of which Flux 2 takes."""
    torch.manual_seed(70)
    config = {**texts._decoder(texts.qwen_tokenizer()), "num_hidden_layers": 27, "head_dim": 8}
    return listening(Qwen3ForCausalLM(Qwen3Config(**config)), 71)


def flux2() -> dict[str, Any]:
    """Components of Flux 2 Klein, the base model."""
    torch.manual_seed(72)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * texts.WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=32,
    )
    return {
        "text_encoder": qwen3_of_many_layers(),
        "tokenizer": texts.qwen_tokenizer(),
        "transformer": listening(transformer, 73),
        "vae": vae.eval(),
        "scheduler": tiny_transformers.shifting(),
    }


def z_image() -> dict[str, Any]:
    """Components of Z-Image."""
    torch.manual_seed(74)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=texts.WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    return {
        "text_encoder": texts.qwen3(),
        "tokenizer": texts.qwen_tokenizer(),
        "transformer": listening(transformer, 75),
        "vae": tiny_transformers.vae(),
        "scheduler": tiny_transformers.flow(),
    }


def hunyuan_video_15() -> dict[str, Any]:
    """Components of HunyuanVideo 1.5."""
    torch.manual_seed(76)
    config = texts._decoder(texts.qwen_tokenizer())
    rope = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [1, 1, 2]}
    encoder = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**config, rope_parameters=rope))
    glyphs = T5EncoderModel(
        T5Config(
            vocab_size=384,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=texts.WIDTH,
        text_embed_2_dim=16,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
        target_size=64,
        task_type="t2v",
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    vae.enable_slicing()  # it cannot decode several videos at once
    return {
        "text_encoder": listening(encoder, 77),
        "tokenizer": texts.qwen_tokenizer(),
        "text_encoder_2": glyphs.eval(),
        "tokenizer_2": ByT5Tokenizer(),
        "transformer": listening(transformer, 78, text=12.0),
        "vae": vae.eval(),
        "scheduler": tiny_transformers.flow(),
    }


def classic_hunyuan_video_15() -> Any:
    """The classic pipeline of the same components."""
    pipe = diffusers.HunyuanVideo15Pipeline(**hunyuan_video_15(), guider=diffusers.ClassifierFreeGuidance())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def classic_hunyuan_image() -> Any:
    """HunyuanImage 2.1, a classic pipeline with guiders."""
    torch.manual_seed(79)
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=texts.WIDTH,
        text_embed_2_dim=16,
        rope_axes_dim=(8, 8),
    )
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        sample_size=32,
        scaling_factor=0.5,
    )
    video = hunyuan_video_15()
    parts = {name: video[name] for name in ("text_encoder_2", "tokenizer_2", "tokenizer", "scheduler")}
    pipe = diffusers.HunyuanImagePipeline(
        **parts,
        text_encoder=texts.qwen_vl(),
        transformer=listening(transformer, 80, text=12.0),
        vae=vae.eval(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.5),
        ocr_guider=diffusers.ClassifierFreeGuidance(guidance_scale=5.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def classic(name: str) -> Any:
    """The classic pipeline whose components a modular one shares."""
    return CLASSIC[name]()


CLASSIC: Mapping[str, Callable[[], Any]] = {
    "sdxl": lambda: tiny_images.SDXL["StableDiffusionXLPipeline"].build(),
    "sd3": lambda: tiny_images.SD3["StableDiffusion3Pipeline"].build(),
    "qwen": lambda: tiny_transformers.build("QwenImagePipeline"),
    "wan": tiny_video.wan,
    "wan22": tiny_video.wan_with_two_transformers,
    "ltx": tiny_video.ltx,
}


@dataclass(frozen=True)
class Tiny:
    """A modular pipeline: its blocks, the classic pipeline whose components it has, which of its guider's inputs are text.

    ``call`` is what a call needs beside prompts, ``pictures`` the name of its argument for several pictures of a prompt, empty if it makes
    but one.
    """

    blocks: str
    made_of: str | Callable[[], dict[str, Any]]
    texts: tuple[str, ...]
    call: Mapping[str, Any] = field(default_factory=dict)
    configs: Mapping[str, Any] = field(default_factory=dict)
    latent: tuple[int, int] = (16, 16)
    """Height and width of the latents at the guider, of patches if they are packed."""
    pictures: str = "num_images_per_prompt"
    negative: bool = False
    """Does it need a negative prompt for each prompt?"""

    def build(self) -> Any:
        made = classic(self.made_of).components if isinstance(self.made_of, str) else self.made_of()
        pipe = modular(self.blocks, made, **self.configs)
        if not pipe.guider._enabled:  # Z-Image's is not, at first
            pipe.guider.enable()
        return pipe

    def run(self, pipe: Any, prompts: Any, seed: int = 0, steps: int = 4, **more: Any) -> torch.Tensor:
        """The latents that a call ends with."""
        generator = torch.Generator().manual_seed(seed)
        negative = {"negative_prompt": [""] * len(prompts)} if self.negative else {}
        call = {"num_inference_steps": steps, **negative, **self.call, **more}
        return pipe(prompt=prompts, generator=generator, output="latents", **call)


PICTURE = {"height": 32, "width": 32, "output_type": "pt"}
VIDEO = {**PICTURE, "num_frames": 5}
STATES = "encoder_hidden_states"
MASK = "encoder_attention_mask"

TINY: Mapping[str, Tiny] = {
    "sdxl": Tiny("StableDiffusionXLAutoBlocks", "sdxl", ("prompt_embeds", "text_embeds"), PICTURE),
    "sd3": Tiny("StableDiffusion3AutoBlocks", "sd3", (STATES, "text_embeds"), PICTURE, negative=True),
    "qwen": Tiny(
        "QwenImageAutoBlocks",
        "qwen",
        (STATES, "encoder_hidden_states_mask"),
        PICTURE,
        latent=(4, 4),
        negative=True,
    ),
    "wan": Tiny("WanBlocks", "wan", (STATES,), VIDEO, latent=(4, 4), pictures="num_videos_per_prompt"),
    "wan22": Tiny(
        "Wan22Blocks",
        "wan22",
        (STATES,),
        VIDEO,
        {"boundary_ratio": 0.7},
        latent=(4, 4),
        pictures="num_videos_per_prompt",
    ),
    "ltx": Tiny(
        "LTXAutoBlocks",
        "ltx",
        (STATES, MASK),
        {**PICTURE, "height": 64, "width": 64, "num_frames": 9},
        pictures="num_videos_per_prompt",
    ),
    "flux2": Tiny("Flux2KleinBaseAutoBlocks", flux2, (STATES,), PICTURE, latent=(8, 8)),
    "z-image": Tiny("ZImageAutoBlocks", z_image, ("cap_feats",), PICTURE),
    "hunyuan-video-1.5": Tiny(
        "HunyuanVideo15AutoBlocks",
        hunyuan_video_15,
        (STATES, MASK, f"{STATES}_2", f"{MASK}_2"),
        VIDEO,
        latent=(8, 8),
        pictures="",  # fails in diffusers: it has image_embeds for each prompt only
        negative=True,
    ),
}
