"""Picture pipelines in miniature: real classes of diffusers and transformers, random weights, 32 x 32 pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import tiny_pipelines
import torch
from diffusers import (
    ControlNetXSAdapter,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from module_copies import copied
from PIL import Image
from tiny_image_denoisers import (
    SIZE,
    adapter,
    hunyuan_controlnet,
    hunyuan_transformer,
    pixart_transformer,
    sd3_controlnet,
    sd3_transformer,
    sd_controlnet,
    sdxl_controlnet,
    sdxl_controlnet_union,
    sdxl_unet,
    unet,
    vae,
    woken,
)
from tiny_image_texts import (
    WIDTH,
    KolorsPAGPipeline,
    bert,
    bert_tokenizer,
    chatglm,
    chatglm_tokenizer,
    clip,
    clip_projected,
    clip_tokenizer,
    kolors,
    t5,
    t5_tokenizer,
)


def picture(seed: int = 0, size: int = SIZE) -> Image.Image:
    """A picture of noise."""
    pixels = torch.rand(size, size, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((pixels.numpy() * 255).astype("uint8"))


def half_mask(size: int = SIZE) -> Image.Image:
    """A mask: the left half is to be painted anew."""
    mask = Image.new("L", (size, size), 0)
    mask.paste(255, (0, 0, size // 2, size))
    return mask


def _sd(**options: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(),
        "scheduler": tiny_pipelines.ddim(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    } | options


def _sd_alone(**options: Any) -> dict[str, Any]:
    """Without a safety checker, which some classes know nothing of."""
    checker = ("safety_checker", "feature_extractor", "requires_safety_checker")
    return {name: part for name, part in _sd().items() if name not in checker} | options


XS_BLOCKS: Mapping[str, Any] = {"layers_per_block": 2, "use_linear_projection": True}


def _controlnet_xs(made_for: Callable[..., UNet2DConditionModel]) -> ControlNetXSAdapter:
    torch.manual_seed(32)
    own = {"size_ratio": 1, "conditioning_embedding_out_channels": (8, 16)}
    return woken(ControlNetXSAdapter.from_unet(made_for(**XS_BLOCKS), **own))


def _sdxl(**options: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_projected(),
        "tokenizer_2": clip_tokenizer(),
        "unet": sdxl_unet(),
        "scheduler": EulerDiscreteScheduler(**tiny_pipelines.STABLE_DIFFUSION, timestep_spacing="leading"),
    } | options


def _v_prediction() -> DDIMScheduler:
    return tiny_pipelines.ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True)


def _sdxl_refiner(**options: Any) -> dict[str, Any]:
    return (
        _sdxl(
            text_encoder=None,
            tokenizer=None,
            unet=sdxl_unet(width=WIDTH, time_ids=5),
            requires_aesthetics_score=True,
        )
        | options
    )


def _sd3(**options: Any) -> dict[str, Any]:
    return {
        "vae": vae(16),
        "text_encoder": clip_projected(15),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_projected(),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": t5(),
        "tokenizer_3": t5_tokenizer(),
        "transformer": sd3_transformer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    } | options


def _pixart(**options: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": t5(),
        "tokenizer": t5_tokenizer(),
        "transformer": pixart_transformer(),
        "scheduler": tiny_pipelines.ddim(),
    } | options


def _kolors(**options: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": chatglm(),
        "tokenizer": chatglm_tokenizer(),
        "unet": sdxl_unet(width=WIDTH),
        "scheduler": EulerDiscreteScheduler(**tiny_pipelines.STABLE_DIFFUSION, timestep_spacing="leading"),
    } | options


def _hunyuan(**options: Any) -> dict[str, Any]:
    return {
        "vae": vae(blocks=4),  # the pipeline takes it that latents are eight times smaller
        "text_encoder": bert(),
        "tokenizer": bert_tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": t5_tokenizer(),
        "transformer": hunyuan_transformer(),
        "scheduler": tiny_pipelines.ddim(prediction_type="v_prediction"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    } | options


@dataclass(frozen=True)
class Tiny:
    """A pipeline class, what it is made of, and what a call of it needs beside prompts.

    ``per_prompt`` are arguments that are lists with one entry per prompt, ``per_picture`` with one per picture.
    """

    pipeline: str
    components: Callable[..., dict[str, Any]]
    options: Callable[[], dict[str, Any]] = dict
    arguments: Callable[[], dict[str, Any]] = dict
    per_prompt: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    per_picture: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    def build(self) -> Any:
        """A new pipeline, silent: the denoiser is a copy, the other models are shared, and nobody may change them."""
        cls = KOLORS_CLASSES.get(self.pipeline) or getattr(diffusers, self.pipeline)
        parts = self.components(**self.options())
        own = {name: copied(parts[name]) for name in ("unet", "transformer") if name in parts}
        pipe = cls(**parts | own)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, prompts: int = 1) -> dict[str, Any]:
        """Arguments of a call with that many prompts, one picture each, other than the prompts."""
        makers = {**self.per_prompt, **self.per_picture}
        lists = {name: [make() for _ in range(prompts)] for name, make in makers.items()}
        return self.arguments() | lists


# Without sentencepiece diffusers has only placeholders for these at top level.
KOLORS_CLASSES: Mapping[str, type] = {
    "KolorsPipeline": kolors.KolorsPipeline,
    "KolorsImg2ImgPipeline": kolors.KolorsImg2ImgPipeline,
    "KolorsPAGPipeline": KolorsPAGPipeline,
}


def _image(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"image": picture(), **more}


def _inpaint(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"image": picture(), "mask_image": half_mask(), "height": SIZE, "width": SIZE, **more}


def _control(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"control_image": picture(1), **more}


ADAPTER_BLOCKS: Mapping[str, Any] = {  # the order in which Stable Diffusion's adapters expect them
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def _with_controlnet(make: Callable[[], Any], **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"controlnet": make(), **more}


def _listed(*all_of_them: Tiny) -> dict[str, Tiny]:
    return {each.pipeline: each for each in all_of_them}


PAG_LAYERS: Mapping[str, Any] = {"pag_applied_layers": "mid"}

SDXL = _listed(
    Tiny("StableDiffusionXLPipeline", _sdxl),
    Tiny("StableDiffusionXLImg2ImgPipeline", _sdxl, arguments=_image(strength=0.75)),
    Tiny("StableDiffusionXLInpaintPipeline", _sdxl, arguments=_inpaint(strength=0.75)),
    Tiny("StableDiffusionXLControlNetPipeline", _sdxl, _with_controlnet(sdxl_controlnet), _image()),
    Tiny(
        "StableDiffusionXLControlNetImg2ImgPipeline",
        _sdxl,
        _with_controlnet(sdxl_controlnet),
        _image(control_image=picture(1), strength=0.75),
    ),
    Tiny(
        "StableDiffusionXLControlNetInpaintPipeline",
        _sdxl,
        _with_controlnet(sdxl_controlnet),
        _inpaint(control_image=picture(1), strength=0.75),
    ),
    Tiny(
        "StableDiffusionXLControlNetUnionPipeline",
        _sdxl,
        _with_controlnet(sdxl_controlnet_union),
        _control(control_mode=1),
    ),
    Tiny(
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        _sdxl,
        _with_controlnet(sdxl_controlnet_union),
        _image(control_image=picture(1), control_mode=1, strength=0.75),
    ),
    Tiny(
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        _sdxl,
        _with_controlnet(sdxl_controlnet_union),
        _inpaint(control_image=[picture(1)], control_mode=[1], strength=0.75),
    ),
    Tiny(
        "StableDiffusionXLAdapterPipeline",
        _sdxl,
        lambda: {"adapter": adapter("full_adapter_xl")},
        per_prompt={"image": picture},
    ),
    Tiny(
        "StableDiffusionXLControlNetXSPipeline",
        _sdxl,
        lambda: {"unet": sdxl_unet(**XS_BLOCKS), "controlnet": _controlnet_xs(sdxl_unet)},
        _image(),
    ),
    Tiny("StableDiffusionXLPAGPipeline", _sdxl, lambda: dict(PAG_LAYERS)),
    Tiny("StableDiffusionXLPAGImg2ImgPipeline", _sdxl, lambda: dict(PAG_LAYERS), _image(strength=0.75)),
    Tiny("StableDiffusionXLPAGInpaintPipeline", _sdxl, lambda: dict(PAG_LAYERS), _inpaint(strength=0.75)),
    Tiny(
        "StableDiffusionXLControlNetPAGPipeline",
        _sdxl,
        _with_controlnet(sdxl_controlnet, **PAG_LAYERS),
        _image(),
    ),
    Tiny(
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        _sdxl,
        _with_controlnet(sdxl_controlnet, **PAG_LAYERS),
        _image(control_image=picture(1), strength=0.75),
    ),
)

EXTRA = {
    "refiner": Tiny("StableDiffusionXLImg2ImgPipeline", _sdxl_refiner, arguments=_image(strength=0.75)),
    "v": Tiny("StableDiffusionXLPipeline", _sdxl, lambda: {"scheduler": _v_prediction()}),
    "nine channels": Tiny(
        "StableDiffusionXLInpaintPipeline", _sdxl, lambda: {"unet": sdxl_unet(9)}, _inpaint(strength=0.75)
    ),
    "guess mode": Tiny(
        "StableDiffusionXLControlNetPipeline",
        _sdxl,
        _with_controlnet(sdxl_controlnet),
        _image(guess_mode=True),
    ),
    "33 channels": Tiny(
        "StableDiffusion3InpaintPipeline",
        _sd3,
        lambda: {"transformer": sd3_transformer(33)},
        _inpaint(strength=0.75),
    ),
}
"""Variants of what the tables have, by what is special about them."""

PIX2PIX = _listed(
    Tiny(
        "StableDiffusionInstructPix2PixPipeline",
        _sd,
        lambda: {"unet": unet(8)},
        per_picture={"image": picture},
    ),
    Tiny(
        "StableDiffusionXLInstructPix2PixPipeline",
        _sdxl,
        lambda: {"unet": sdxl_unet(8)},
        lambda: {"height": SIZE, "width": SIZE},
        per_picture={"image": picture},
    ),
)

SD3 = _listed(
    Tiny("StableDiffusion3Pipeline", _sd3),
    Tiny(
        "StableDiffusion3Img2ImgPipeline",
        _sd3,
        arguments=lambda: {"strength": 0.75, "height": SIZE, "width": SIZE},
        per_picture={"image": picture},
    ),
    Tiny("StableDiffusion3InpaintPipeline", _sd3, arguments=_inpaint(strength=0.75)),
    Tiny("StableDiffusion3ControlNetPipeline", _sd3, _with_controlnet(sd3_controlnet), _control()),
    Tiny(
        "StableDiffusion3ControlNetInpaintingPipeline",
        _sd3,
        lambda: {"controlnet": sd3_controlnet(1)},
        lambda: {"control_image": picture(1), "control_mask": half_mask(), "height": SIZE, "width": SIZE},
    ),
    Tiny("StableDiffusion3PAGPipeline", _sd3, lambda: {"pag_applied_layers": "blocks.1"}),
    Tiny(
        "StableDiffusion3PAGImg2ImgPipeline",
        _sd3,
        lambda: {"pag_applied_layers": "blocks.1"},
        lambda: {"strength": 0.75, "height": SIZE, "width": SIZE},
        per_picture={"image": picture},
    ),
)

PIXART_CALL: Mapping[str, Any] = {"use_resolution_binning": False, "clean_caption": False}
PIXART = _listed(
    Tiny("PixArtAlphaPipeline", _pixart, arguments=lambda: dict(PIXART_CALL)),
    Tiny("PixArtSigmaPipeline", _pixart, arguments=lambda: dict(PIXART_CALL)),
    Tiny(
        "PixArtSigmaPAGPipeline",
        _pixart,
        lambda: {"pag_applied_layers": "blocks.1"},
        lambda: dict(PIXART_CALL),
    ),
)

KOLORS = _listed(
    Tiny("KolorsPipeline", _kolors),
    Tiny("KolorsImg2ImgPipeline", _kolors, arguments=_image(strength=0.75)),
    Tiny("KolorsPAGPipeline", _kolors, lambda: dict(PAG_LAYERS)),
)

HUNYUANDIT = _listed(
    Tiny("HunyuanDiTPipeline", _hunyuan, arguments=lambda: {"use_resolution_binning": False}),
    Tiny(
        "HunyuanDiTControlNetPipeline",
        _hunyuan,
        _with_controlnet(hunyuan_controlnet),
        _control(use_resolution_binning=False),
    ),
    Tiny(
        "HunyuanDiTPAGPipeline",
        _hunyuan,
        lambda: {"pag_applied_layers": "blocks.1"},
        lambda: {"use_resolution_binning": False},
    ),
)

SD_RELATIVES = _listed(
    Tiny("StableDiffusionImg2ImgPipeline", _sd, arguments=_image(strength=0.75)),
    Tiny("StableDiffusionInpaintPipeline", _sd, arguments=_inpaint(strength=0.75)),
    Tiny("StableDiffusionControlNetPipeline", _sd, _with_controlnet(sd_controlnet), _image()),
    Tiny(
        "StableDiffusionControlNetImg2ImgPipeline",
        _sd,
        _with_controlnet(sd_controlnet),
        _image(control_image=picture(1), strength=0.75),
    ),
    Tiny(
        "StableDiffusionControlNetInpaintPipeline",
        _sd,
        _with_controlnet(sd_controlnet),
        _inpaint(control_image=picture(1), strength=0.75),
    ),
    Tiny("StableDiffusionPAGPipeline", _sd, lambda: dict(PAG_LAYERS)),
    Tiny("StableDiffusionPAGImg2ImgPipeline", _sd, lambda: dict(PAG_LAYERS), _image(strength=0.75)),
    Tiny("StableDiffusionPAGInpaintPipeline", _sd, lambda: dict(PAG_LAYERS), _inpaint(strength=0.75)),
    Tiny(
        "StableDiffusionControlNetPAGPipeline", _sd, _with_controlnet(sd_controlnet, **PAG_LAYERS), _image()
    ),
    Tiny(
        "StableDiffusionControlNetPAGInpaintPipeline",
        _sd,
        _with_controlnet(sd_controlnet, **PAG_LAYERS),
        _inpaint(control_image=picture(1), strength=0.75),
    ),
    Tiny(
        "StableDiffusionAdapterPipeline",
        _sd,
        lambda: {"unet": unet(**ADAPTER_BLOCKS), "adapter": adapter("full_adapter")},
        per_prompt={"image": picture},
    ),
    Tiny(
        "StableDiffusionDepth2ImgPipeline",
        _sd_alone,
        lambda: {"unet": unet(5), "depth_estimator": None, "feature_extractor": None},
        _image(strength=0.75, depth_map=torch.rand(1, SIZE, SIZE)),
    ),
    Tiny(
        "StableDiffusionUpscalePipeline",
        _sd_alone,
        lambda: {
            "unet": unet(7, num_class_embeds=100),
            "vae": vae(scaling_factor=0.08333),
            "low_res_scheduler": DDPMScheduler(),
            "max_noise_level": 90,
        },
        lambda: {"noise_level": 20},
        per_prompt={"image": lambda: picture(size=SIZE // 2)},
    ),
    Tiny(
        "StableDiffusionGLIGENPipeline",
        _sd,
        lambda: {"unet": unet(attention_type="gated")},
        lambda: {"gligen_phrases": ["a red knight"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]},
    ),
    Tiny(
        "StableDiffusionControlNetXSPipeline",
        _sd,
        lambda: {"unet": unet(**XS_BLOCKS), "controlnet": _controlnet_xs(unet)},
        _image(),
    ),
)

ALL: dict[str, Tiny] = SDXL | PIX2PIX | SD3 | PIXART | KOLORS | HUNYUANDIT | SD_RELATIVES
