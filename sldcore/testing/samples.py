"""Inputs of guidance methods and step hooks, made of names: the same name gives the same numbers, wherever it stands.

So a sample can be followed through batches: alone, beside others, at another index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import sqrt
from typing import Any, Literal
from zlib import crc32

import torch
from torch import Tensor

from sldcore.guidance.base import GuidedSample
from sldcore.policy import GuidanceSpec, Options
from sldcore.types import Predictions, Row, Schedule, Step

Shape = tuple[int, ...]
CPU = torch.device("cpu")


def schedule(steps: int = 10, prediction: Literal["epsilon", "v", "flow"] = "epsilon") -> Schedule:
    """The schedule of a run with ``steps`` denoiser calls, from pure noise down; for "v" the first factor is 0.

    Variance-preserving but for "flow"; x0 can be told everywhere, but for "epsilon" at pure noise.
    """
    levels = tuple(1 - index / steps for index in range(steps))
    alphas = tuple(sqrt(1 - level**2) for level in levels)
    factors = {
        "epsilon": (1.0,) * steps,
        "v": alphas,
        "flow": tuple(1 - level for level in levels),
    }
    denoised = {
        "epsilon": tuple((1 / a, -s / a) if a else (0.0, 0.0) for a, s in zip(alphas, levels, strict=True)),
        "v": tuple((a, -s) for a, s in zip(alphas, levels, strict=True)),
        "flow": tuple((1.0, -level) for level in levels),
    }
    return Schedule(
        tuple(999 * level for level in levels),
        levels,
        factors[prediction],
        denoised_factors=denoised[prediction],
    )


def predictions(
    step: Step,
    rows: Sequence[Row],
    samples: Sequence[str],
    shape: Shape = (4, 4, 4),
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Predictions:
    """What a denoiser might predict at ``step`` for a batch of named samples and these concept rows.

    Standard normal numbers, uncond, cond and latents [B, *shape], concepts [R, *shape], the same for the same name of a
    sample, step and concept.
    """

    def stacked(names: Sequence[str]) -> Tensor:
        if not names:
            return torch.zeros(0, *shape, dtype=dtype, device=device)
        return torch.stack([_noise(f"{step.index}/{name}", shape) for name in names]).to(device, dtype)

    return Predictions(
        uncond=stacked([f"{name}/uncond" for name in samples]),
        cond=stacked([f"{name}/cond" for name in samples]),
        concepts=stacked([f"{samples[row.sample]}/concept {row.concept}" for row in rows]),
        rows=tuple(rows),
        latents=stacked([f"{name}/latents" for name in samples]),
    )


def guided_samples(
    method: str,
    options: Mapping[str, Any],
    samples: Sequence[str],
    steps: int = 10,
    *,
    batch: Sequence[str] | None = None,
    **fields: Any,
) -> list[GuidedSample]:
    """Named samples as a method sees them, with weights and windows that differ from name to name.

    ``batch`` names the whole batch, whose positions are the indices; ``samples`` themselves if it is left out. ``fields``
    replace what is said of every sample (``weights``, ``strengths``, ``acting``, ``concepts``, ``concept_acting``).
    """
    spec = GuidanceSpec(method=method, options=Options(options))
    places = {name: index for index, name in enumerate(batch or samples)}
    return [GuidedSample(**{**_sample(name, places[name], spec, steps), **fields}) for name in samples]


def _sample(name: str, index: int, spec: GuidanceSpec, steps: int) -> dict[str, Any]:
    number = crc32(name.encode())
    concepts = (0, 1) if number % 2 else (1,)
    starts, stops = number % 3, steps - number % 2
    return {
        "index": index,
        "spec": spec,
        "concepts": concepts,
        "weights": tuple(1.0 + 0.25 * ((number + concept) % 3) for concept in concepts),
        "acting": tuple(1.0 if starts <= step < stops else 0.0 for step in range(steps)),
        "strengths": (1.0,) * len(concepts),
        "concept_acting": ((1.0,) * steps,) * len(concepts),
    }


@lru_cache(maxsize=8192)
def _noise(name: str, shape: Shape) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
