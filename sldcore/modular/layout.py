"""Where things are in a picture whose latents may be packed: read from what the denoiser is called with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Layout:
    """The layout of one run's latents, and the latents of its latest conditional call."""

    def __init__(self) -> None:
        self.latents: Tensor | None = None
        self._arguments: Mapping[str, Any] = {}
        self._shape: tuple[int, int, int] | None = None

    def watch(self, denoiser: nn.Module) -> Any:
        """Note what ``denoiser`` is called with, until the handle that this returns is removed.

        A denoiser that was compiled in place calls no hooks: then its latents stay unknown.
        """
        plain = getattr(denoiser, "_orig_mod", denoiser)
        names = inspect.signature(plain.forward)

        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._arguments = names.bind_partial(*args, **kwargs).arguments
            first = next(iter(self._arguments.values()), None)
            named = (self._arguments.get(name) for name in ("hidden_states", "sample", "x"))
            latents = next((value for value in named if value is not None), first)
            if isinstance(latents, list) and latents:
                latents = torch.stack(latents)
            self.latents = latents if isinstance(latents, Tensor) else None

        return denoiser.register_forward_pre_hook(note, with_kwargs=True)

    def forget(self) -> None:
        """Keep nothing of a step's inputs alive."""
        self.latents = None
        self._arguments = {}

    def spatial_map(self, strength: Tensor) -> Tensor:
        """Strengths [R, C, H, W], [R, C, F, H, W] or packed [R, L, C] as maps [R, H, W]."""
        if strength.ndim > 3:
            return strength.mean(tuple(range(1, strength.ndim - 2)))
        tokens = strength.mean(-1)  # [R, L]
        if self._shape is None:
            self._shape = packed_shape(self._arguments, tokens.shape[1])
        frames, height, width = self._shape
        own = tokens[:, : frames * height * width]
        return own.reshape(-1, frames, height, width).mean(1)


def packed_shape(arguments: Mapping[str, Any], length: int) -> tuple[int, int, int]:
    """Frames, height and width of packed latents, (1, 1, length) if the denoiser's arguments do not tell.

    Further tokens than these are pictures that the prompt refers to.
    """
    shapes = arguments.get("img_shapes")
    while isinstance(shapes, list | tuple) and shapes and not isinstance(shapes[0], int):
        shapes = shapes[0]
    found = tuple(shapes) if shapes else _from_sizes(arguments) or _from_ids(arguments.get("img_ids"))
    if found is None or found[0] * found[1] * found[2] > length:
        return (1, 1, length)
    return found[0], found[1], found[2]


def _from_sizes(arguments: Mapping[str, Any]) -> tuple[int, int, int] | None:
    height, width = arguments.get("height"), arguments.get("width")
    if isinstance(height, int) and isinstance(width, int):
        return (int(arguments.get("num_frames") or 1), height, width)
    return None


def _from_ids(ids: Any) -> tuple[int, int, int] | None:
    """From positions [.., L, 3 or 4] whose entries 1 and 2 count rows and columns, of the first picture."""
    if not isinstance(ids, Tensor) or ids.shape[-1] < 3:
        return None
    positions = ids[0] if ids.ndim == 3 else ids
    own = positions[positions[:, 0] == positions[0, 0]]
    rows, columns = (int(own[:, axis].max()) + 1 for axis in (1, 2))
    return (1, rows, columns)
