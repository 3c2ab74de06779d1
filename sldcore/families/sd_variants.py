"""Stable Diffusion 1.x and 2.x pipelines with more than text to guide them."""

from __future__ import annotations

from sldcore.families.pag import PerturbedAttention
from sldcore.families.sd import StableDiffusion


class StableDiffusionVariant(PerturbedAttention, StableDiffusion):
    """As Stable Diffusion; what else the UNet is given is copied with the conditional row, and PAG has a third part."""

    name = "stable-diffusion-variants"
