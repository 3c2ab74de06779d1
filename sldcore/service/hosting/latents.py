"""Latents of pipelines with a VAE for pictures, decoded as the pipelines themselves do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def can_decode(pipe: Any) -> bool:
    """Whether pictures of the way can be made: a VAE for pictures, and no checker of the pipeline's own that would have to look."""
    config = getattr(getattr(pipe, "vae", None), "config", None)
    if config is None or not hasattr(pipe, "image_processor"):
        return False
    known = hasattr(config, "scaling_factor") and hasattr(config, "latent_channels")
    checked = getattr(pipe, "safety_checker", None) is not None
    return known and not checked


def decoded(pipe: Any, latents: Tensor) -> list[NDArray[np.float32] | None]:
    """Latents [B, C, h, w] as pictures [H, W, 3] in 0..1; None for one that holds NaN or Inf.

    Raises:
        ValueError: these latents are packed, or a video's.
    """
    config = pipe.vae.config
    if latents.ndim != 4 or latents.shape[1] != config.latent_channels:
        raise ValueError(f"latents of shape {tuple(latents.shape)} are no {config.latent_channels} channels")
    with torch.no_grad(), _precise(pipe.vae):
        like = next(pipe.vae.parameters())
        scaled = _unscaled(config, latents.to(like.device, like.dtype))
        pixels = pipe.vae.decode(scaled, return_dict=False)[0]
    sound = pixels.isfinite().flatten(1).all(1).tolist()
    pictures = pipe.image_processor.postprocess(pixels.float(), output_type="np")
    return [
        np.asarray(each, dtype=np.float32) if good else None
        for each, good in zip(pictures, sound, strict=True)
    ]


def _unscaled(config: Any, latents: Tensor) -> Tensor:
    """Latents as the VAE made them."""
    mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and deviation is not None:
        shift, scale = (latents.new_tensor(list(each)).view(1, -1, 1, 1) for each in (mean, deviation))
        return latents * scale / float(config.scaling_factor) + shift
    return latents / float(config.scaling_factor) + float(getattr(config, "shift_factor", None) or 0.0)


@contextmanager
def _precise(vae: Any) -> Iterator[None]:
    """In float32 where the VAE overflows in float16, as SDXL's does."""
    dtype = next(vae.parameters()).dtype
    upcast = dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
    if upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if upcast:
            vae.to(dtype)
