"""Loading pipelines: the embedded playground, a folder, a single file, or a hub id; safetensors only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from sldcore.errors import ModelError, listed
from sldcore.playground import MODEL

PLAYGROUND: Final = "playground"
PICKLED: Final = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load_pipeline(
    model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Any:
    """Load a diffusers pipeline.

    Args:
        model: ``"playground"``, a folder in diffusers layout, a ``.safetensors`` checkpoint of Stable Diffusion 1.x/2.x,
            or a hub id.
        device: where to put it; CUDA, then Apple's MPS, then the CPU by default.
        dtype: float32, float16 or bfloat16, by name or as torch's; float16 on CUDA and float32 elsewhere by default.

    Raises:
        ModelError: nothing usable there, pickled weights only, an unknown dtype, or a device that is not there.
    """
    where = _best_device() if device is None else _usable(device)
    chosen = _dtype(dtype, where)
    place = Path(model)
    if model == PLAYGROUND:
        options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False, "dtype": chosen}
        with safetensors_only(MODEL, options) as checked:
            pipe = StableDiffusionPipeline.from_pretrained(str(MODEL), **checked)
        pipe.register_to_config(_name_or_path=PLAYGROUND)
    elif place.is_file():
        with safetensors_only(model, {"dtype": chosen}) as checked:
            pipe = StableDiffusionPipeline.from_single_file(str(place), dtype=checked["dtype"])
    else:
        with safetensors_only(model, {"dtype": chosen}) as checked:
            pipe = DiffusionPipeline.from_pretrained(str(model), **checked)
    return pipe.to(where)


@contextmanager
def safetensors_only(model: Any, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Options for a ``from_pretrained`` call that will not touch pickled weights, and one clear error if it fails.

    Raises:
        ModelError: nothing usable at ``model``, or the caller asked for pickled weights.
    """
    if options.get("use_safetensors") is False:
        raise ModelError(
            f"{model}: use_safetensors=False asks for pickled weights, which can run code; {_CONVERT}"
        )
    folder = Path(str(model))
    if folder.is_dir():
        _refuse_pickle_only(folder)
    elif folder.is_file():
        _refuse_pickle(folder)
    try:
        yield {**options, "use_safetensors": True}
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"cannot load a pipeline from '{model}': {' '.join(str(error).split())[:300]}. Give 'playground', a folder in "
            f"diffusers layout, a .safetensors checkpoint, or the id of a model on the hub that is reachable or cached"
        ) from error


_CONVERT: Final = (
    "convert the weights to safetensors first (save_pretrained with safe_serialization=True does)"
)


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLED:
        raise ModelError(f"{path} is pickled, and loading it could run code; {_CONVERT}")
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{path} is not a .safetensors checkpoint; give one, or a folder in diffusers layout"
        )


def _refuse_pickle_only(folder: Path) -> None:
    """Find components that have pickled weights and no safetensors before any library opens them."""
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder} holds no model_index.json, so it is not a pipeline in diffusers layout")
    for component in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = [path.suffix.lower() for path in component.iterdir()]
        if any(suffix in PICKLED for suffix in files) and ".safetensors" not in files:
            raise ModelError(
                f"{component} holds pickled weights only, and loading them could run code; {_CONVERT}"
            )


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"dtype '{dtype}' is unknown; available: {listed(DTYPES)}")
    return DTYPES[dtype]


def _usable(device: str | torch.device) -> torch.device:
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as problem:  # AssertionError is torch's for a build without CUDA
        reason = str(problem).splitlines()[0]
        raise ModelError(
            f"device '{device}' cannot be used here: {reason}; leave it out for the best there is, or give cpu"
        ) from None
    return where


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
