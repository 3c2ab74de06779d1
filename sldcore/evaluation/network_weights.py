"""Weights of measuring networks, from files that the caller gives: read without running anything in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sldcore.errors import ConfigurationError, ModelError

EXTRA = "fidelity"
"""The extra that brings torchmetrics, torchvision and torch-fidelity."""


def libraries(measure: str, *modules: str) -> list[ModuleType]:
    """The modules that a measure needs, imported.

    Raises:
        ConfigurationError: one cannot be.
    """
    try:
        return [import_module(module) for module in modules]
    except (ImportError, RuntimeError) as problem:  # RuntimeError: built for another torch
        needed = " and ".join(module.partition(".")[0].replace("_", "-") for module in modules)
        raise ConfigurationError(
            f"{measure} needs {needed}, which cannot be imported ({problem}); pip install 'sldcore[{EXTRA}]', or leave it out"
        ) from None


def read_weights(path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file, or of a state dict that torch saved and can read without running code.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    import torch
    from safetensors.torch import load_file

    try:
        safe = path.suffix == ".safetensors"
        found = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
        raise ModelError(
            f"cannot read weights from {path} ({reason}); give a safetensors file or a state dict"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ModelError(
            f"{path} holds no state dict (names and tensors); give the file that the network's authors publish"
        )
    return found


@contextmanager
def belonging(path: Path, network: str) -> Iterator[None]:
    """One clear error if weights do not fit the network that they are loaded into.

    Raises:
        ModelError: loading failed inside the ``with`` block.
    """
    try:
        yield
    except (KeyError, RuntimeError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise ModelError(f"the weights in {path} are not those of {network} ({reason})") from None
