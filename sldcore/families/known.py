"""Which families the core has, and which pipeline classes each serves. Free of torch, so that listing them is cheap."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sldcore.contributions import FamilyKind


def family(name: str, description: str, place: str, *pipelines: str) -> FamilyKind:
    """A family whose class is ``place``, ``module:Class`` within this package, imported when it is needed."""

    def create() -> Any:
        module, _, kind = place.partition(":")
        return getattr(import_module(f"sldcore.families.{module}"), kind)()

    return FamilyKind(name=name, description=description, pipelines=pipelines, create=create)


KINDS: tuple[FamilyKind, ...] = (
    family(
        "stable-diffusion",
        "Stable Diffusion 1.x and 2.x, with ControlNet, T2I-Adapter, PAG, depth, boxes, or at four times the size too",
        "sd:StableDiffusion",
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionPAGImg2ImgPipeline",
        "StableDiffusionPAGInpaintPipeline",
        "StableDiffusionControlNetPAGPipeline",
        "StableDiffusionControlNetPAGInpaintPipeline",
        "StableDiffusionAdapterPipeline",
        "StableDiffusionControlNetXSPipeline",
        "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionGLIGENPipeline",
        "StableDiffusionUpscalePipeline",
    ),
)
