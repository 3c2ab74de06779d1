"""Reference latents: pictures of what guidance keeps away from, as a model's own latents in one safetensors file.

The file has one tensor ``latents`` [N, C, H, W], or [N, C, F, H, W] for video, in the space of the denoiser's latents:
encoded by the model's autoencoder (the mode of its distribution, not a sample, so that the same pictures give the same
file), shifted and scaled as its pipeline does. Its metadata say what it was made with. Whoever names a file names its sha256
too, so a policy says exactly which pictures it keeps away from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import sldcore
from sldcore.documents import write_bytes_atomically
from sldcore.errors import GuidanceError

TENSOR: Final = "latents"
METADATA: Final = "references"
"""Key of the metadata: JSON with the model's name, the number of pictures, their height and width, and versions of libraries."""


def read_references(path: str, digest: str) -> Tensor:
    """The latents [N, C, ...] of a file, on the CPU; not to be edited.

    A relative ``path`` starts at the working directory of the process. A file is read once per process.

    Raises:
        GuidanceError: there is no such file, its sha256 is not ``digest``, or it is no file of reference latents.
    """
    return _read(str(Path(path).absolute()), digest.lower())


@lru_cache(maxsize=4)
def _read(path: str, digest: str) -> Tensor:
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        reason = getattr(problem, "strerror", None) or problem
        raise GuidanceError(
            f"cannot read the references {path}: {reason}; make the file with "
            f"sldcore.guidance.references.write_references, or name another (a relative path starts at the working directory)"
        ) from None
    found = sha256(content).hexdigest()
    if found != digest:
        raise GuidanceError(
            f"the references {path} have sha256 {found}, not {digest}: this is another file than the policy means; use the "
            f"right file, or put this hash into the policy if these are the pictures to keep away from"
        )
    try:
        tensors = load(content)
    except SafetensorError as problem:
        raise GuidanceError(f"the references {path} are no safetensors file: {problem}") from None
    return _checked(path, tensors)


def _checked(path: str, tensors: dict[str, Tensor]) -> Tensor:
    if list(tensors) != [TENSOR]:
        names = ", ".join(sorted(tensors)) or "none"
        raise GuidanceError(f"the references {path} must have one tensor named '{TENSOR}', and have: {names}")
    latents = tensors[TENSOR]
    if not latents.is_floating_point() or latents.ndim < 3 or latents.numel() == 0:
        raise GuidanceError(
            f"the latents of the references {path} are {list(latents.shape)} of {str(latents.dtype).removeprefix('torch.')}; "
            f"expected floating point [N, C, H, W] with at least one picture"
        )
    if not latents.isfinite().all():
        raise GuidanceError(f"the latents of the references {path} have NaN or Inf; make the file again")
    return latents


def write_references(
    pipe: Any, pictures: Sequence[Any], path: str | Path, size: tuple[int, int] | None = None
) -> str:
    """Encode pictures (PIL) by the pipeline's autoencoder into a file of reference latents, and return its sha256.

    Args:
        pipe: A diffusers pipeline with ``vae`` and ``image_processor``, whose latents are as the autoencoder gives them.
        pictures: What to keep away from.
        path: Where the file appears, in one piece.
        size: Height and width in pixels that all pictures are resized to; those that pictures will be generated in.
            Left out, those of the first picture.

    Raises:
        GuidanceError: there are no pictures, or the pipeline packs its latents or lacks a part.
    """
    if not pictures:
        raise GuidanceError("there are no pictures to encode; give at least one")
    missing = [name for name in ("vae", "image_processor") if getattr(pipe, name, None) is None]
    if missing or hasattr(pipe, "_pack_latents"):
        why = f"it has no {' and no '.join(missing)}" if missing else "it packs its latents"
        raise GuidanceError(
            f"reference latents cannot be made with this {type(pipe).__name__}: {why}; give a pipeline whose denoiser is given "
            f"the autoencoder's latents, such as Stable Diffusion"
        )
    height, width = size or (pictures[0].height, pictures[0].width)
    with torch.no_grad(), _precise(pipe.vae) as vae:
        latents = torch.cat(
            [_encode(vae, pipe.image_processor.preprocess(each, height, width)) for each in pictures]
        )
    made = {"model": _name(pipe), "pictures": len(pictures), "size": [height, width], **_versions()}
    metadata = {
        METADATA: json.dumps(made, sort_keys=True)
    }  # one key: safetensors gives several no fixed order
    content = save({TENSOR: latents.to(torch.float16).contiguous()}, metadata=metadata)
    write_bytes_atomically(path, content)
    return sha256(content).hexdigest()


def _encode(vae: Any, pixels: Tensor) -> Tensor:
    """One picture [1, 3, H, W] in -1..1 as the denoiser's latents, float32 on the CPU."""
    encoded = vae.encode(pixels.to(vae.device, vae.dtype))
    latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
    latents, config = latents.float(), vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        latents = (latents - _channels(mean, latents)) / _channels(std, latents)
    scale = float(config.get("scaling_factor") or 1.0)
    return ((latents - float(config.get("shift_factor") or 0.0)) * scale).cpu()


def _channels(values: Sequence[float], latents: Tensor) -> Tensor:
    return torch.tensor(values, device=latents.device).view(1, -1, *(1,) * (latents.ndim - 2))


@contextmanager
def _precise(vae: Any) -> Iterator[Any]:
    """The autoencoder in float32 for a while, if it overflows in half precision."""
    dtype = vae.dtype
    upcast = dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    if upcast:
        vae.to(torch.float32)
    try:
        yield vae
    finally:
        if upcast:
            vae.to(dtype)


def _name(pipe: Any) -> str:
    """The model's name; of a folder, only its own name."""
    name = str(pipe.config.get("_name_or_path") or "") or type(pipe).__name__
    return Path(name).name if Path(name).is_absolute() else name


def _versions() -> dict[str, str]:
    import diffusers

    return {"sldcore": sldcore.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
