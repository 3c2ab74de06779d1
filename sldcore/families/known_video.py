"""Families of this group by name: which class serves which pipelines. Free of torch, so that listing them is cheap."""

from __future__ import annotations

from sldcore.contributions import FamilyKind
from sldcore.families.known import family

KINDS: tuple[FamilyKind, ...] = (
    family(
        "cogvideox",
        "CogVideoX 1.0 and 1.5, from pictures, videos and control videos too",
        "cogvideox:CogVideoX",
        "CogVideoXPipeline",
        "CogVideoXImageToVideoPipeline",
        "CogVideoXVideoToVideoPipeline",
        "CogVideoXFunControlPipeline",
    ),
    family(
        "animatediff",
        "AnimateDiff on Stable Diffusion, ControlNet, SparseCtrl and PAG variants included",
        "animatediff:AnimateDiff",
        "AnimateDiffPipeline",
        "AnimateDiffVideoToVideoPipeline",
        "AnimateDiffControlNetPipeline",
        "AnimateDiffVideoToVideoControlNetPipeline",
        "AnimateDiffSparseControlNetPipeline",
        "AnimateDiffPAGPipeline",
    ),
    family(
        "animatediff-xl",
        "AnimateDiff on Stable Diffusion XL",
        "animatediff:AnimateDiffXL",
        "AnimateDiffSDXLPipeline",
    ),
    family(
        "ltx-video",
        "LTX-Video, from pictures and with conditions too",
        "ltx:LTXVideo",
        "LTXPipeline",
        "LTXImageToVideoPipeline",
        "LTXConditionPipeline",
    ),
    family("latte", "Latte", "latte:Latte", "LattePipeline"),
    family("mochi", "Mochi", "mochi:Mochi", "MochiPipeline"),
    family("allegro", "Allegro", "allegro:Allegro", "AllegroPipeline"),
    family(
        "wan",
        "Wan 2.1 and 2.2, VACE and Lucy Edit, and SkyReels V2, from pictures and videos too",
        "wan:Wan",
        "WanPipeline",
        "WanImageToVideoPipeline",
        "WanVideoToVideoPipeline",
        "WanVACEPipeline",
        "LucyEditPipeline",
        "SkyReelsV2Pipeline",
        "SkyReelsV2ImageToVideoPipeline",
    ),
    family(
        "hunyuanvideo",
        "HunyuanVideo with true_cfg_scale, and SkyReels V1 from pictures",
        "hunyuanvideo:HunyuanVideo",
        "HunyuanVideoPipeline",
        "HunyuanSkyreelsImageToVideoPipeline",
    ),
    family(
        "cosmos",
        "Cosmos 1, from text, pictures and videos",
        "cosmos:Cosmos",
        "CosmosTextToWorldPipeline",
        "CosmosVideoToWorldPipeline",
    ),
    family(
        "easyanimate",
        "EasyAnimate, from videos with masks too",
        "easyanimate:EasyAnimate",
        "EasyAnimatePipeline",
        "EasyAnimateInpaintPipeline",
    ),
)
