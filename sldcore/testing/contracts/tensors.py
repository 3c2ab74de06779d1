"""Comparing tensors, with words for what differs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from sldcore.testing.contracts.base import require
from sldcore.testing.samples import CPU
from sldcore.types import Predictions

DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)
PARTS: Final = ("uncond", "cond", "concepts")

CLOSE: Final = 1e-4
"""Largest difference of two float32 results that count as the same where a batch may be summed in another order."""


@dataclass(frozen=True, slots=True)
class Place:
    """What kind of tensors a test uses."""

    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    shape: tuple[int, ...] = (4, 4, 4)


def require_equal(got: Tensor, expected: Tensor, message: str) -> None:
    """Fail unless two tensors are equal bit by bit, NaN being equal to NaN."""
    require_like(got, expected, message)
    require(torch.equal(got.nan_to_num(nan=7.7e4), expected.nan_to_num(nan=7.7e4)), message)


def require_close(got: Tensor, expected: Tensor, message: str) -> None:
    """Fail unless two tensors are the same up to rounding."""
    require_like(got, expected, message)
    difference = (got.double() - expected.double()).abs()
    bound = CLOSE * (1 + expected.double().abs())
    worst = float(difference.max()) if difference.numel() else 0.0
    require(bool((difference <= bound).all()), f"{message} (differs by up to {worst:.3g})")


def require_like(got: object, model: Tensor, message: str) -> None:
    """Fail unless ``got`` is a tensor of the model's shape, dtype and device."""
    kind = described(got) if isinstance(got, Tensor) else type(got).__name__
    alike = isinstance(got, Tensor) and described(got) == described(model)
    require(alike, f"{message}: expected a tensor {described(model)}, got {kind}")


def described(tensor: Tensor) -> str:
    """Shape, dtype and device in words."""
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device.type}"


@contextmanager
def unchanged(predictions: Predictions, who: str) -> Iterator[None]:
    """Fail if the tensors of ``predictions`` are not the same after the ``with`` block as before."""
    before = {part: getattr(predictions, part).clone() for part in PARTS}
    yield
    for part in PARTS:
        message = f"{who} changed its input: predictions.{part} is not what it was; work on a copy"
        require_equal(getattr(predictions, part), before[part], message)


def with_nan(predictions: Predictions, part: str, row: int) -> Predictions:
    """The predictions with one number of one row replaced by NaN."""
    spoilt = getattr(predictions, part).clone()
    spoilt[row].view(-1)[0] = float("nan")
    return replace(predictions, **{part: spoilt})


def cuda() -> torch.device | None:
    """The CUDA device, if there is one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
