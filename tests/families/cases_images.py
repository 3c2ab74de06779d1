"""Picture pipelines as cases for the common checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import tiny_image_denoisers as denoisers
import tiny_images as tiny
from family_checks import Case
from tiny_image_texts import WIDTH
from torch import Tensor

from sldcore.families.hunyuandit import HunyuanDiT
from sldcore.families.kolors import Kolors
from sldcore.families.pix2pix import InstructPix2Pix, InstructPix2PixXL
from sldcore.families.pixart import PixArt
from sldcore.families.sd import StableDiffusion
from sldcore.families.sd3 import StableDiffusion3
from sldcore.families.sdxl import StableDiffusionXL

Text = Callable[[Any, str], Mapping[str, Tensor]]


def sd_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipe.encode_prompt(concept, "cpu", 1, False)[0]}


def pix2pix_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipe._encode_prompt(concept, "cpu", 1, False)}


def sdxl_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt(concept, device="cpu")
    return {"encoder_hidden_states": encoded[0], "added_cond_kwargs.text_embeds": encoded[2]}


def sd3_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt(concept, concept, concept)
    return {"encoder_hidden_states": encoded[0], "pooled_projections": encoded[2]}


def pixart_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt(concept)
    return {"encoder_hidden_states": encoded[0], "encoder_attention_mask": encoded[1]}


def hunyuan_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    bert, t5 = (pipe.encode_prompt(concept, text_encoder_index=index) for index in (0, 1))
    return {
        "encoder_hidden_states": bert[0],
        "text_embedding_mask": bert[2],
        "encoder_hidden_states_t5": t5[0],
        "text_embedding_mask_t5": t5[2],
    }


PLAIN: Mapping[str, Callable[[], Any]] = {
    "sd": denoisers.unet,
    "sdxl": denoisers.sdxl_unet,
    "sd3": denoisers.sd3_transformer,
    "pixart": denoisers.pixart_transformer,
    "kolors": lambda: denoisers.sdxl_unet(width=WIDTH),
    "hunyuandit": denoisers.hunyuan_transformer,
}
"""The denoisers with the attention that they have without PAG."""


def case(group: str, miniature: tiny.Tiny, family: type, text: Text, prediction: str, **more: Any) -> Case:
    """A case for one pipeline class."""
    name = miniature.pipeline.removesuffix("Pipeline")
    call = {"num_inference_steps": 4, "guidance_scale": 5.0, **miniature.arguments()}
    call |= {name: make() for name, make in miniature.per_prompt.items()}
    call |= {name: make() for name, make in miniature.per_picture.items()}
    if "PAG" in name:
        more = {
            "parts": ("uncond", "cond", "perturbed"),
            "parts_at_once": True,
            "concept_module": lambda pipe: PLAIN[group](),
            **more,
        }
    return Case(
        name=name,
        family=family,
        pipe=miniature.build,
        text=text,
        prediction=prediction,
        call=call,
        per_prompt=tuple(miniature.per_prompt),
        per_picture=tuple(miniature.per_picture),
        skipped=1 if "strength" in call else 0,
        **more,
    )


UNET: Mapping[str, Any] = {"module": "unet", "latents": "sample"}
PIX2PIX: Mapping[str, Any] = {**UNET, "parts": ("cond", "uncond", "neither")}

SDXL = [case("sdxl", each, StableDiffusionXL, sdxl_text, "epsilon", **UNET) for each in tiny.SDXL.values()]
REFINER, *VARIANTS = (
    replace(
        case("", tiny.EXTRA[name], family, text, prediction, **more),
        name=tiny.EXTRA[name].pipeline.removesuffix("Pipeline") + f", {name}",
    )
    for name, family, text, prediction, more in (
        ("refiner", StableDiffusionXL, sdxl_text, "epsilon", UNET),
        ("v", StableDiffusionXL, sdxl_text, "v", UNET),
        ("nine channels", StableDiffusionXL, sdxl_text, "epsilon", UNET),
        ("guess mode", StableDiffusionXL, sdxl_text, "epsilon", UNET),
        ("33 channels", StableDiffusion3, sd3_text, "flow", {}),
    )
)
SD3 = [case("sd3", each, StableDiffusion3, sd3_text, "flow") for each in tiny.SD3.values()]
PIXART = [case("pixart", each, PixArt, pixart_text, "epsilon") for each in tiny.PIXART.values()]
KOLORS = [case("kolors", each, Kolors, sdxl_text, "epsilon", **UNET) for each in tiny.KOLORS.values()]
HUNYUANDIT = [case("hunyuandit", each, HunyuanDiT, hunyuan_text, "v") for each in tiny.HUNYUANDIT.values()]
SD_VARIANTS = [
    case("sd", each, StableDiffusion, sd_text, "epsilon", **UNET) for each in tiny.SD_RELATIVES.values()
]
INSTRUCT = [
    case(
        "sd",
        tiny.PIX2PIX["StableDiffusionInstructPix2PixPipeline"],
        InstructPix2Pix,
        pix2pix_text,
        "epsilon",
        **PIX2PIX,
    ),
    case(
        "sdxl",
        tiny.PIX2PIX["StableDiffusionXLInstructPix2PixPipeline"],
        InstructPix2PixXL,
        sdxl_text,
        "epsilon",
        **PIX2PIX,
    ),
]
CASES = [*SDXL, REFINER, *VARIANTS, *SD3, *PIXART, *KOLORS, *HUNYUANDIT, *SD_VARIANTS, *INSTRUCT]
