"""What is seen at a step, as tensors that stay on the device: quantities, their statistics and their previews."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor
from torch.nn import functional

from sldcore.types import Predictions


def quantities(predictions: Predictions, guided: Tensor) -> dict[str, Tensor]:
    """The tensors of a step by name, [B, C, H, W] each, in float32.

    ``uncond`` and ``cond`` are the denoiser's predictions, ``guided`` the safe conditional prediction, and ``safety`` what was
    subtracted, cond - guided. ``latents`` are what the denoiser looked at.
    """
    uncond, cond, guided = predictions.uncond.float(), predictions.cond.float(), guided.float()
    seen = {"uncond": uncond, "cond": cond, "guided": guided, "safety": cond - guided}
    latents = predictions.latents
    return seen if latents is None else {"latents": latents.float(), **seen}


def measured(quantity: Tensor) -> Tensor:
    """Euclidean norm, mean and standard deviation of each sample, [3, B]."""
    flat = quantity.flatten(1)
    return torch.stack([flat.norm(dim=1), flat.mean(dim=1), flat.std(dim=1, correction=0)])


def preview(quantity: Tensor, size: int) -> Tensor:
    """A colour picture of each sample, [B, 3, h, w], not scaled; height and width at most ``size``.

    Each channel gets a hue of its own, evenly spaced on the colour wheel, its negative values the opposite one. A map that
    is the same for every model says nothing of true colours, but shows where something is and where it changes.
    """
    channels = quantity.shape[1]
    hues = torch.arange(channels, device=quantity.device)[:, None] / channels
    primaries = torch.arange(3, device=quantity.device) / 3
    wheel = torch.cos(2 * pi * (hues - primaries))  # [C, 3]
    picture = torch.einsum("bchw,ck->bkhw", quantity, wheel)
    height, width = (min(length, size) for length in picture.shape[2:])
    return functional.adaptive_avg_pool2d(picture, (height, width))
