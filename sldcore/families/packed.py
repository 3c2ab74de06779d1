"""What families share whose latents are packed: patches of a picture in a row, [B, H*W, C]."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sldcore.families.base import DiffusersFamily

_GRIDS: Final[MutableMapping[Tensor, tuple[int, int]]] = WeakIdKeyDictionary()
"""Positions of a run's patches to height and width of their grid, so that only the first step waits for the host."""


class PackedFamily(DiffusersFamily):
    """Text and picture have positions, ``txt_ids`` [L, 3] and ``img_ids`` [H*W, 3], that all rows share."""

    shared_arguments = ("txt_ids", "img_ids")
    option_names: ClassVar[tuple[str, ...]] = ("max_sequence_length", "lora_scale")

    def spatial_map(self, strength: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The mean over channels, in the grid of the patches; those of a picture to be edited, behind them, are left out."""
        positions: Tensor = arguments["img_ids"]
        if positions not in _GRIDS:
            _GRIDS[positions] = _grid(positions)
        return gridded(strength, *_GRIDS[positions])

    def picture_size(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """What the call says, else the pipeline's own default."""
        default = pipe.default_sample_size * pipe.vae_scale_factor
        return int(arguments.get("height") or default), int(arguments.get("width") or default)


def gridded(strength: Tensor, height: int, width: int) -> Tensor:
    """The first height * width patches of [R, S, C] as maps [R, H, W]."""
    return strength[:, : height * width].mean(2).reshape(len(strength), height, width)


def _grid(positions: Tensor) -> tuple[int, int]:
    """Height and width of the first picture in ``positions`` [S, 3] (picture, row, column)."""
    first = positions[positions[:, 0] == positions[0, 0]]
    return len(torch.unique(first[:, 1])), len(torch.unique(first[:, 2]))
