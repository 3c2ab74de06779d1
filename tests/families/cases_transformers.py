"""Transformer pipelines as cases for the common checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tiny_transformer_denoisers as denoisers
import tiny_transformers as tiny
import torch
from family_checks import Case
from torch import Tensor

from sldcore.families.auraflow import AuraFlow
from sldcore.families.cascade import StableCascadePrior
from sldcore.families.cogview import CogView3Plus, CogView4
from sldcore.families.flux import Chroma, Flux
from sldcore.families.hidream import HiDream
from sldcore.families.lumina import Lumina2, LuminaNext
from sldcore.families.qwenimage import QwenImage
from sldcore.families.sana import Sana
from sldcore.families.templated import Bria, LongCatImage, OvisImage

SIZE = tiny.SIZE
LENGTH = {"max_sequence_length": 32}
"""Short texts: attention hardly hears a few words among hundreds of paddings without a mask."""


def picture(seed: int, mode: str = "RGB") -> PIL.Image.Image:
    """Noise."""
    pixels = np.random.RandomState(seed).randint(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


FROM_PICTURE = {"image": picture(1), "strength": 0.75}
INPAINT = {**FROM_PICTURE, "mask_image": picture(2, "L")}
CONTROL = {"control_image": picture(3)}


def states(pipe: Any, concept: str, **more: Any) -> dict[str, Tensor]:
    """For pipelines whose transformer takes nothing else."""
    return {"encoder_hidden_states": pipe.encode_prompt(concept, **more)[0]}


def masked(
    pipe: Any, concept: str, *, mask: str = "encoder_attention_mask", **more: Any
) -> dict[str, Tensor]:
    """For those that take a mask, too."""
    encoded = pipe.encode_prompt(concept, **more)
    return {"encoder_hidden_states": encoded[0], mask: encoded[1]}


def sana_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    return masked(pipe, concept, complex_human_instruction=INSTRUCTION)


def flux_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt(concept, concept, max_sequence_length=512)
    return {"encoder_hidden_states": encoded[0], "pooled_projections": encoded[1]}


def chroma_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded, patches = pipe.encode_prompt(concept), (SIZE // 4) ** 2
    mask = torch.cat([encoded[2], torch.ones(1, patches)], dim=1)
    return {"encoder_hidden_states": encoded[0], "attention_mask": mask}


def hidream_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt(concept)
    return {
        "encoder_hidden_states_t5": encoded[0],
        "encoder_hidden_states_llama3": encoded[2],
        "pooled_embeds": encoded[4],
    }


def cascade_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt("cpu", 1, 1, True, prompt=concept)
    return {"clip_text": encoded[0], "clip_text_pooled": encoded[1]}


INSTRUCTION = ["Think of the scene.", "User Prompt: "]
SANA = {"use_resolution_binning": False, "complex_human_instruction": INSTRUCTION}


def case(
    pipeline: str,
    family: type,
    text: Callable[[Any, str], Mapping[str, Tensor]],
    prediction: str = "flow",
    call: Mapping[str, Any] | None = None,
    **more: Any,
) -> Case:
    """A case for the pipeline class of this name."""
    basic = {"num_inference_steps": 4, "height": SIZE, "width": SIZE}
    call = {**basic, "guidance_scale": 5.0, **(call or {})}
    return Case(
        name=pipeline.removesuffix("Pipeline"),
        family=family,
        pipe=partial(tiny.build, f"{pipeline}Pipeline"),
        text=text,
        prediction=prediction,
        call=call,
        **more,
    )


TRUE_CFG: dict[str, Any] = {"true_cfg_scale": 5.0, "negative_prompt": ""}
FLUX: dict[str, Any] = {**TRUE_CFG, "guidance_scale": 3.5}
KONTEXT: dict[str, Any] = {"_auto_resize": False, "max_area": SIZE * SIZE}
QWEN: dict[str, Any] = {**TRUE_CFG, "guidance_scale": None}
APART: dict[str, Any] = {"apart": True}
DISTILLED: dict[str, Any] = {**APART, "unguided": {"true_cfg_scale": 1.0}}
PAG: dict[str, Any] = {
    "parts": ("uncond", "cond", "perturbed"),
    "parts_at_once": True,
    "concept_module": lambda pipe: denoisers.sana(),
}

SANAS = [
    case("Sana", Sana, sana_text, "flow-by-sigmas", SANA),
    case("SanaControlNet", Sana, sana_text, "flow-by-sigmas", {**SANA, **CONTROL}),
    case("SanaPAG", Sana, sana_text, "flow-by-sigmas", {**SANA, "pag_scale": 2.0}, **PAG),
]
TOGETHER = [
    case("AuraFlow", AuraFlow, partial(states, max_sequence_length=16), "flow", {"max_sequence_length": 16}),
    case("CogView3Plus", CogView3Plus, partial(states, **LENGTH), "v", LENGTH),
    case(
        "Lumina",
        LuminaNext,
        partial(masked, mask="encoder_mask"),
        "-flow",
        {"clean_caption": False},
        parts=("cond", "uncond"),
    ),
    case(
        "HiDreamImage",
        HiDream,
        hidream_text,
        "-flow",
        rows_second=("encoder_hidden_states_llama3",),
    ),
    case("Bria", Bria, partial(states, **LENGTH), "flow", LENGTH),
    case(
        "StableCascadePrior",
        StableCascadePrior,
        cascade_text,
        "epsilon",
        {"output_type": "pt"},
        module="prior",
        latents="sample",
        parts=("cond", "uncond"),
    ),
]
COGVIEW4 = [
    case("CogView4", CogView4, states, "flow-by-sigmas", **APART),
    case("CogView4Control", CogView4, states, "flow-by-sigmas", CONTROL, **APART),
]
FLUXES = [
    case("Flux", Flux, flux_text, "flow", FLUX, **DISTILLED),
    case("FluxImg2Img", Flux, flux_text, "flow", {**FLUX, **FROM_PICTURE}, skipped=1, **DISTILLED),
    case("FluxInpaint", Flux, flux_text, "flow", {**FLUX, **INPAINT}, skipped=1, **DISTILLED),
    case("FluxControlNet", Flux, flux_text, "flow", {**FLUX, **CONTROL}, **DISTILLED),
    case("FluxKontext", Flux, flux_text, "flow", {**FLUX, **KONTEXT, "image": picture(1)}, **DISTILLED),
    case(
        "FluxKontextInpaint", Flux, flux_text, "flow", {**FLUX, **KONTEXT, **INPAINT}, skipped=1, **DISTILLED
    ),
]
CHROMAS = [
    case("Chroma", Chroma, chroma_text, **APART),
    case("ChromaImg2Img", Chroma, chroma_text, "flow", FROM_PICTURE, skipped=1, **APART),
    case("ChromaInpaint", Chroma, chroma_text, "flow", INPAINT, skipped=1, **APART),
]
QWENS = [
    case("QwenImage", QwenImage, states, "flow", QWEN, **DISTILLED),
    case("QwenImageImg2Img", QwenImage, states, "flow", {**QWEN, **FROM_PICTURE}, skipped=1, **DISTILLED),
    case("QwenImageInpaint", QwenImage, states, "flow", {**QWEN, **INPAINT}, skipped=1, **DISTILLED),
    case("QwenImageControlNet", QwenImage, states, "flow", {**QWEN, **CONTROL}, **DISTILLED),
    case(
        "QwenImageControlNetInpaint",
        QwenImage,
        states,
        "flow",
        {**QWEN, **CONTROL, "control_mask": picture(2, "L")},
        **DISTILLED,
    ),
]
OTHERS_APART = [
    case("Lumina2", Lumina2, masked, "-flow", **APART),
    case("OvisImage", OvisImage, partial(states, **LENGTH), "flow", LENGTH, **APART),
    case(
        "LongCatImage",
        LongCatImage,
        states,
        "flow",
        {"enable_prompt_rewrite": False, "negative_prompt": ""},
        **APART,
    ),
]
CASES = [*SANAS, *TOGETHER, *COGVIEW4, *FLUXES, *CHROMAS, *QWENS, *OTHERS_APART]
BY_NAME = {case.name: case for case in CASES}
FIRST = (
    "Sana",
    "AuraFlow",
    "CogView3Plus",
    "Lumina",
    "HiDreamImage",
    "Bria",
    "CogView4",
    "Flux",
    "Chroma",
    "QwenImage",
    "Lumina2",
    "OvisImage",
    "LongCatImage",
    "StableCascadePrior",
)
"""One of each family."""


def named(*names: str) -> Any:
    """Run a test for the cases of these names."""
    return pytest.mark.parametrize("case", [BY_NAME[name] for name in names], ids=lambda case: case.name)
