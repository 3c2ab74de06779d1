"""The core's guidance methods by name, with their options: everything that a policy can say of them, without loading torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Literal

from pydantic import Field

from sldcore.contributions import GuidanceMethod
from sldcore.documents import Strict
from sldcore.policy_parts import Number, SLDOptions


class NegativeOptions(Strict):
    """``negative`` has no options: the concept stands where the negative prompt would."""


class SAFREEOptions(Strict):
    """Options of the method ``safree`` (arXiv 2410.12761): the paper's alpha and up_t, k and t0 of its sigmoid.

    ``calls`` is the number of denoiser calls that ``up_t`` is meant for; 0 for any number. ``negative`` puts the concept in
    place of the negative prompt too, as the authors' code does. For artists' styles they take k = 3.5 and t0 = 5.5.
    """

    alpha: Number = Field(default=0.01, ge=-1)
    up_t: Number = Field(default=10.0, ge=0)
    steepness: Number = Field(default=2.5, ge=0)
    midpoint: Number = 5.333
    calls: int = Field(default=50, ge=0, strict=True)
    negative: bool = Field(default=True, strict=True)


class DNGOptions(Strict):
    """Options of the method ``dng`` (arXiv 2410.14398); of the paper's ranges for Stable Diffusion the mildest ends.

    ``scale`` is lambda_0 (12 to 27 in the paper), ``prior`` the probability of a concept before the first step,
    ``temperature`` tau (0.2 to 0.3), ``offset`` delta (0.002 to 0.004), and ``largest_posterior`` what the probability is
    limited to. ``pipeline_guidance_scale`` is the ``guidance_scale`` that the pipeline is called with; it is used only
    where the pipeline's family does not tell it.
    """

    scale: Number = Field(default=12.0, ge=0)
    prior: Number = Field(default=0.01, ge=1e-6, lt=1)
    temperature: Number = Field(default=0.2, ge=0)
    offset: Number = 0.002
    largest_posterior: Number = Field(default=0.8, ge=1e-6, lt=1)
    pipeline_guidance_scale: Number = Field(default=7.5, gt=1)


class SafeDenoiserOptions(Strict):
    """Options of the method ``safe-denoiser`` (arXiv 2502.08011), with the paper's for nudity in Stable Diffusion 1.4.

    ``references`` is a safetensors file with one tensor ``latents`` [N, C, H, W], as
    :func:`sldcore.guidance.references.write_references` makes it, and ``sha256`` what the file must be, in 64 hexadecimal
    digits. A relative path starts at the working directory of the process. ``scale`` is eta, ``bandwidth`` sigma of the
    kernel, ``threshold`` the kernel mass of the references at which repelling is at its full strength (``form: paper``) or
    begins (``form: released``). It acts where the noise level of the latents, in variance-preserving terms, is at least
    ``noise_floor``: by default timesteps 780 to 1000 of Stable Diffusion. ``pipeline_guidance_scale`` as in ``dng``.
    """

    references: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$")
    form: Literal["paper", "released"] = "paper"
    scale: Number = Field(default=0.33, ge=0)
    bandwidth: Number = Field(default=3.15, gt=0)
    threshold: Number = Field(default=1.6, gt=0)
    noise_floor: Number = Field(default=0.9778, ge=0, le=1)
    pipeline_guidance_scale: Number = Field(default=7.5, gt=1)


class CASGOptions(SLDOptions):
    """Options of the method ``casg`` (arXiv 2602.20880): those of SLD, at its strongest setting as in the paper.

    ``choose_until``: after so many denoiser calls in which a sample's concept was chosen from several, the last choice stays and
    only its row is evaluated; 0, the paper's way, chooses at every call.
    """

    scale: Number = Field(default=5000.0, ge=0)
    threshold: Number = 1.0
    momentum_scale: Number = Field(default=0.5, ge=0, le=1)
    momentum_beta: Number = Field(default=0.7, ge=0, lt=1)
    choose_until: int = Field(default=0, ge=0, strict=True)


def _create(module: str, name: str) -> Callable[[], Any]:
    def create() -> Any:
        return getattr(import_module(f"sldcore.guidance.{module}"), name)()

    return create


KINDS: Final = (
    GuidanceMethod(
        name="sld",
        description="Safe Latent Diffusion, arXiv 2211.05105",
        options=SLDOptions,
        create=_create("sld", "SLD"),
    ),
    GuidanceMethod(
        name="negative",
        description="the concept as negative prompt, without further rows",
        options=NegativeOptions,
        create=_create("negative", "Negative"),
    ),
    GuidanceMethod(
        name="sld+negative",
        description="Safe Latent Diffusion with the concept as negative prompt too",
        options=SLDOptions,
        create=_create("negative", "NegativeSLD"),
    ),
    GuidanceMethod(
        name="casg",
        description="SLD against the one concept that conflicts most, arXiv 2602.20880",
        options=CASGOptions,
        create=_create("casg", "CASG"),
    ),
    GuidanceMethod(
        name="safree",
        description="SAFREE without latent re-attention, arXiv 2410.12761",
        options=SAFREEOptions,
        create=_create("safree", "SAFREE"),
    ),
    GuidanceMethod(
        name="dng",
        description="Dynamic Negative Guidance, arXiv 2410.14398",
        options=DNGOptions,
        create=_create("dng", "DNG"),
    ),
    GuidanceMethod(
        name="safe-denoiser",
        description="Safe Denoiser, away from reference pictures, arXiv 2502.08011",
        options=SafeDenoiserOptions,
        create=_create("safe_denoiser", "SafeDenoiser"),
    ),
)
