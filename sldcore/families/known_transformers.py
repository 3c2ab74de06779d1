"""Families of this group by name: which class serves which pipelines. Free of torch, so that listing them is cheap."""

from __future__ import annotations

from sldcore.contributions import FamilyKind
from sldcore.families.known import family

KINDS: tuple[FamilyKind, ...] = (
    family(
        "sana",
        "Sana, ControlNet and PAG variants included",
        "sana:Sana",
        "SanaPipeline",
        "SanaControlNetPipeline",
        "SanaPAGPipeline",
    ),
    family("auraflow", "AuraFlow", "auraflow:AuraFlow", "AuraFlowPipeline"),
    family("cogview3-plus", "CogView3 Plus", "cogview:CogView3Plus", "CogView3PlusPipeline"),
    family(
        "cogview4",
        "CogView4, with a control picture too",
        "cogview:CogView4",
        "CogView4Pipeline",
        "CogView4ControlPipeline",
    ),
    family("lumina-next", "Lumina-Next", "lumina:LuminaNext", "LuminaPipeline"),
    family("lumina2", "Lumina-Image 2.0", "lumina:Lumina2", "Lumina2Pipeline"),
    family(
        "flux",
        "FLUX.1 with true_cfg_scale, from pictures, with ControlNet, and Kontext",
        "flux:Flux",
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxControlNetPipeline",
        "FluxKontextPipeline",
        "FluxKontextInpaintPipeline",
    ),
    family(
        "chroma",
        "Chroma, from pictures too",
        "flux:Chroma",
        "ChromaPipeline",
        "ChromaImg2ImgPipeline",
        "ChromaInpaintPipeline",
    ),
    family(
        "qwen-image",
        "Qwen-Image with true_cfg_scale, from pictures and with ControlNet",
        "qwenimage:QwenImage",
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        "QwenImageControlNetPipeline",
        "QwenImageControlNetInpaintPipeline",
    ),
    family("hidream", "HiDream-I1", "hidream:HiDream", "HiDreamImagePipeline"),
    family("ovis-image", "Ovis-Image", "templated:OvisImage", "OvisImagePipeline"),
    family("longcat-image", "LongCat-Image", "templated:LongCatImage", "LongCatImagePipeline"),
    family("bria", "Bria 3", "templated:Bria", "BriaPipeline"),
    family(
        "stable-cascade-prior",
        "Stable Cascade's prior; its decoder is left as it is",
        "cascade:StableCascadePrior",
        "StableCascadePriorPipeline",
    ),
)
