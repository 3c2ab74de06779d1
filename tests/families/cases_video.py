"""Video pipelines as cases for the common checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import tiny_video as tiny
from family_checks import Case
from tiny_images import picture
from tiny_video_denoisers import TOKENS, motion_unet
from torch import Tensor

from sldcore.families.allegro import Allegro
from sldcore.families.animatediff import AnimateDiff, AnimateDiffXL
from sldcore.families.cogvideox import CogVideoX
from sldcore.families.cosmos import Cosmos
from sldcore.families.easyanimate import EasyAnimate
from sldcore.families.hunyuanvideo import HunyuanVideo
from sldcore.families.latte import Latte
from sldcore.families.ltx import LTXVideo
from sldcore.families.mochi import Mochi
from sldcore.families.wan import Wan

Text = Callable[[Any, str], Mapping[str, Tensor]]
SHORT: Mapping[str, Any] = {"max_sequence_length": TOKENS}
SMALL: Mapping[str, Any] = {"height": 16, "width": 16}
FIVE: Mapping[str, Any] = {**SMALL, "num_frames": 5}


def t5_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipe.encode_prompt(concept, **SHORT)[0]}


def masked_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt(concept, **SHORT)
    return {"encoder_hidden_states": encoded[0], "encoder_attention_mask": encoded[1]}


def allegro_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt(concept, **SHORT)
    return {"encoder_hidden_states": encoded[0][:, None], "encoder_attention_mask": encoded[1]}


def latte_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipe.encode_prompt(concept)[0]}


def animatediff_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipe.encode_prompt(concept, "cpu", 1, False)[0]}


def animatediff_xl_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt(concept, device="cpu")
    return {"encoder_hidden_states": encoded[0], "added_cond_kwargs.text_embeds": encoded[2]}


def hunyuanvideo_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    encoded = pipe.encode_prompt(concept, **SHORT)
    return {
        "encoder_hidden_states": encoded[0],
        "pooled_projections": encoded[1],
        "encoder_attention_mask": encoded[2],
    }


def easyanimate_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipe.encode_prompt(concept, negative_prompt="")[0]}


def case(
    pipe: Any, name: str, family: type, text: Text, prediction: str, call: Mapping[str, Any], **more: Any
) -> Case:
    """A case for one pipeline class."""
    return Case(
        name=name.removesuffix("Pipeline"),
        family=family,
        pipe=lambda: pipe(name),
        text=text,
        prediction=prediction,
        call={"num_inference_steps": 4, "guidance_scale": 5.0, **call},
        **{"images": "num_videos_per_prompt", **more},
    )


def cogvideox(name: str, call: Mapping[str, Any], **more: Any) -> Case:
    call = {**SMALL, **SHORT, **call}
    return case(tiny.cogvideox, name, CogVideoX, t5_text, "v", call, **{"images": "", **more})


COGVIDEOX = [
    cogvideox("CogVideoXPipeline", {"num_frames": 5}),
    cogvideox(
        "CogVideoXImageToVideoPipeline", {"num_frames": 5, "image": picture(size=16)}, per_picture=("image",)
    ),
    cogvideox(
        "CogVideoXVideoToVideoPipeline",
        {"video": tiny.clip_of(5, 16), "strength": 0.8},
        per_picture=("video",),
        skipped=1,
    ),
    cogvideox(
        "CogVideoXFunControlPipeline", {"control_video": tiny.clip_of(5, 16)}, per_picture=("control_video",)
    ),
]


def frames_of(arguments: Mapping[str, Any]) -> int:
    return int(arguments["sample"].shape[2])


def animatediff(name: str, call: Mapping[str, Any], **more: Any) -> Case:
    family, text = (AnimateDiffXL, animatediff_xl_text) if "SDXL" in name else (AnimateDiff, animatediff_text)
    own = {"images": "", "module": "unet", "latents": "sample", "rows_per_sample": frames_of}
    return case(
        tiny.animatediff,
        name,
        family,
        text,
        "epsilon",
        {"height": 32, "width": 32, **call},
        **{**own, **more},
    )


ANIMATEDIFF = [
    animatediff("AnimateDiffPipeline", {"num_frames": 3}),
    animatediff("AnimateDiffSDXLPipeline", {"num_frames": 3}),
    animatediff(
        "AnimateDiffVideoToVideoPipeline",
        {"video": tiny.clip_of(3, 32), "strength": 0.8},
        per_picture=("video",),
        skipped=1,
    ),
    animatediff(
        "AnimateDiffControlNetPipeline",
        {"num_frames": 3, "conditioning_frames": tiny.clip_of(3, 32)},
        per_picture=("conditioning_frames",),
    ),
    animatediff(
        "AnimateDiffVideoToVideoControlNetPipeline",
        {"video": tiny.clip_of(3, 32), "strength": 0.8, "conditioning_frames": tiny.clip_of(3, 32)},
        per_picture=("video", "conditioning_frames"),
        skipped=1,
    ),
    animatediff(
        "AnimateDiffSparseControlNetPipeline",
        {"num_frames": 3, "conditioning_frames": tiny.clip_of(2, 32), "controlnet_frame_indices": [0, 2]},
    ),
    animatediff(
        "AnimateDiffPAGPipeline",
        {"num_frames": 3},
        parts=("uncond", "cond", "perturbed"),
        parts_at_once=True,
        concept_module=lambda pipe: motion_unet(),
    ),
]


def ltx(name: str, call: Mapping[str, Any], **more: Any) -> Case:
    call = {"height": 32, "width": 32, "num_frames": 9, **SHORT, **call}
    return case(tiny.ltx, name, LTXVideo, masked_text, "flow", call, **more)


LTX = [
    ltx("LTXPipeline", {}),
    ltx("LTXImageToVideoPipeline", {"image": picture()}, per_picture=("image",)),
    ltx("LTXConditionPipeline", {"image": picture()}),
]
LATTE = [
    case(
        lambda name: tiny.latte(),
        "LattePipeline",
        Latte,
        latte_text,
        "epsilon",
        {**SMALL, "video_length": 2, "clean_caption": False},
        images="num_images_per_prompt",
    )
]
MOCHI = [
    case(
        lambda name: tiny.mochi(),
        "MochiPipeline",
        Mochi,
        masked_text,
        "inverted-flow",
        {**SMALL, **SHORT, "num_frames": 7},
    )
]
ALLEGRO = [
    case(
        lambda name: tiny.allegro(),
        "AllegroPipeline",
        Allegro,
        allegro_text,
        "epsilon",
        {**SMALL, **SHORT, "num_frames": 8, "clean_caption": False},
        images="",
    )
]


def wan(name: str, call: Mapping[str, Any], **more: Any) -> Case:
    return case(tiny.wan, name, Wan, t5_text, "flow", {**SMALL, **SHORT, **call}, apart=True, **more)


WAN = [
    wan("WanPipeline", {"num_frames": 5}),
    wan("WanImageToVideoPipeline", {"num_frames": 5, "image": picture(size=16)}, images=""),
    wan("WanVideoToVideoPipeline", {"video": tiny.clip_of(5, 16), "strength": 0.8}, images="", skipped=1),
    wan("WanVACEPipeline", {"num_frames": 5, "video": tiny.clip_of(5, 16)}, images=""),
    wan("LucyEditPipeline", {"num_frames": 5, "video": tiny.clip_of(5, 16)}, per_picture=("video",)),
    wan("SkyReelsV2Pipeline", {"num_frames": 5}),
    wan("SkyReelsV2ImageToVideoPipeline", {"num_frames": 5, "image": picture(size=16)}, images=""),
]


def hunyuanvideo(name: str, call: Mapping[str, Any], **more: Any) -> Case:
    call = {**FIVE, **SHORT, "negative_prompt": "", "true_cfg_scale": 4.0, "guidance_scale": 1.0, **call}
    return case(
        tiny.hunyuanvideo,
        name,
        HunyuanVideo,
        hunyuanvideo_text,
        "flow",
        call,
        apart=True,
        unguided={"true_cfg_scale": 1.0},
        **more,
    )


HUNYUANVIDEO = [
    hunyuanvideo("HunyuanVideoPipeline", {}),
    hunyuanvideo("HunyuanSkyreelsImageToVideoPipeline", {"image": picture(size=16)}, per_picture=("image",)),
]


def cosmos(name: str, call: Mapping[str, Any], **more: Any) -> Case:
    call = {**SMALL, **SHORT, "num_frames": 9, **call}
    return case(tiny.cosmos, name, Cosmos, t5_text, "edm", call, apart=True, **more)


COSMOS = [
    cosmos("CosmosTextToWorldPipeline", {}),
    cosmos(
        "CosmosVideoToWorldPipeline",
        # No noise of its own for each part, so that the reference can evaluate both on the same latents.
        {"image": picture(size=16), "augment_sigma": 0.0},
        per_picture=("image",),
    ),
]


def easyanimate(name: str, call: Mapping[str, Any], **more: Any) -> Case:
    call = {**FIVE, "negative_prompt": "", **call}
    return case(
        tiny.easyanimate,
        name,
        EasyAnimate,
        easyanimate_text,
        "flow",
        call,
        **{"images": "num_images_per_prompt", **more},
    )


EASYANIMATE = [
    easyanimate("EasyAnimatePipeline", {}),
    easyanimate(
        "EasyAnimateInpaintPipeline",
        {"video": tiny.pixels(5, 16), "mask_video": tiny.half_mask(5, 16)},
        images="",
    ),
]
CASES = [
    *COGVIDEOX,
    *ANIMATEDIFF,
    *LTX,
    *LATTE,
    *MOCHI,
    *ALLEGRO,
    *WAN,
    *HUNYUANVIDEO,
    *COSMOS,
    *EASYANIMATE,
]
BY_NAME = {case.name: case for case in CASES}
FROM_TEXT = (
    "CogVideoX",
    "AnimateDiff",
    "AnimateDiffSDXL",
    "LTX",
    "Latte",
    "Mochi",
    "Allegro",
    "Wan",
    "SkyReelsV2",
    "HunyuanVideo",
    "CosmosTextToWorld",
    "EasyAnimate",
)
"""Cases that make videos of nothing but a text."""


def named(*names: str) -> Any:
    """Run a test for the cases of these names."""
    cases = [BY_NAME[name] for name in names] if names else CASES
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)
