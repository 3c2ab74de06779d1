"""LTX-Video: T5, and a transformer that predicts rectified flow over packed latents [B, F*H*W, C]."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sldcore.families.base import TextOptions
from sldcore.families.video import VideoFamily

_PLACES: Final[MutableMapping[Tensor, tuple[Tensor, int, int]]] = WeakIdKeyDictionary()
"""Coordinates of a run's tokens to :func:`_places` of them, so that only the first step waits for the host."""


class LTXVideo(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D] and a mask [2B, L] of what is no padding."""

    name = "ltx-video"
    text_arguments = ("encoder_hidden_states", "encoder_attention_mask")

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States and mask."""
        states, mask, _, _ = self.encoded(pipe, text, options)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def spatial_map(self, strength: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The mean over frames and channels of packed latents [R, F*H*W, C]; with conditions, tokens say where they are."""
        coordinates = arguments.get("video_coords")
        if coordinates is not None:
            return _scattered(strength.mean(2), coordinates)
        frames, height, width = (arguments[name] for name in ("num_frames", "height", "width"))
        grid = strength.reshape(len(strength), frames, height, width, -1)
        return grid.mean((1, 4))


def _scattered(strength: Tensor, coordinates: Tensor) -> Tensor:
    """Tokens [R, S] at ``coordinates`` [B, 3, S] (time, y, x) as maps [R, H, W]; the mean where several are at one place."""
    if coordinates not in _PLACES:
        _PLACES[coordinates] = _places(coordinates)
    cells, height, width = _PLACES[coordinates]
    empty = strength.new_zeros(len(strength), height * width)
    sums = empty.index_add(1, cells, strength)
    counts = empty.index_add(1, cells, torch.ones_like(strength))
    return (sums / counts.clamp(min=1)).reshape(len(strength), height, width)


def _places(coordinates: Tensor) -> tuple[Tensor, int, int]:
    """The cell of each token [S] in a grid of height times width; all samples have the same."""
    rows, y = torch.unique(coordinates[0, 1], return_inverse=True)
    columns, x = torch.unique(coordinates[0, 2], return_inverse=True)
    return y * len(columns) + x, len(rows), len(columns)
