"""Families of this group by name: which class serves which pipelines. Free of torch, so that listing them is cheap."""

from __future__ import annotations

from sldcore.contributions import FamilyKind
from sldcore.families.known import family

KINDS: tuple[FamilyKind, ...] = (
    family(
        "instruct-pix2pix",
        "InstructPix2Pix on Stable Diffusion",
        "pix2pix:InstructPix2Pix",
        "StableDiffusionInstructPix2PixPipeline",
    ),
    family(
        "instruct-pix2pix-xl",
        "InstructPix2Pix on Stable Diffusion XL",
        "pix2pix:InstructPix2PixXL",
        "StableDiffusionXLInstructPix2PixPipeline",
    ),
    family(
        "stable-diffusion-xl",
        "Stable Diffusion XL, refiner, ControlNet, T2I-Adapter and PAG variants included",
        "sdxl:StableDiffusionXL",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        "StableDiffusionXLControlNetXSPipeline",
        "StableDiffusionXLAdapterPipeline",
        "StableDiffusionXLPAGPipeline",
        "StableDiffusionXLPAGImg2ImgPipeline",
        "StableDiffusionXLPAGInpaintPipeline",
        "StableDiffusionXLControlNetPAGPipeline",
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
    ),
    family(
        "stable-diffusion-3",
        "Stable Diffusion 3 and 3.5, ControlNet and PAG variants included",
        "sd3:StableDiffusion3",
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3ControlNetInpaintingPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusion3PAGImg2ImgPipeline",
    ),
    family(
        "pixart",
        "PixArt-alpha and PixArt-sigma, PAG included",
        "pixart:PixArt",
        "PixArtAlphaPipeline",
        "PixArtSigmaPipeline",
        "PixArtSigmaPAGPipeline",
    ),
    family(
        "kolors",
        "Kolors, PAG included",
        "kolors:Kolors",
        "KolorsPipeline",
        "KolorsImg2ImgPipeline",
        "KolorsPAGPipeline",
    ),
    family(
        "hunyuandit",
        "HunyuanDiT, ControlNet and PAG variants included",
        "hunyuandit:HunyuanDiT",
        "HunyuanDiTPipeline",
        "HunyuanDiTControlNetPipeline",
        "HunyuanDiTPAGPipeline",
    ),
)
