"""Where a pipeline runs, in which number format, and what is kept elsewhere to save memory."""

from __future__ import annotations

import os
from typing import Any, Final

import torch

from sldcore.errors import ModelError, listed, nearest
from sldcore.loading.index import Index

DTYPES: Final = ("bfloat16", "float16", "float32")
OFFLOADS: Final = ("none", "model", "sequential", "group")
HALF_TRANSFORMERS: Final = (
    "HunyuanDiT2DModel",
    "LatteTransformer3DModel",
    "PixArtTransformer2DModel",
    "Transformer2DModel",
)
"""Transformers that were trained in float16."""
FLOAT_VAES: Final = ("AutoencoderKLWan",)
"""VAEs that diffusers advises to keep in float32."""
PLENTY_GIB: Final = 64
"""Below this much memory diffusers advises sliced attention on Apple's GPUs."""


def device_of(device: str | torch.device | None) -> torch.device:
    """The device that was asked for; CUDA, then an XPU, then Apple's MPS, then the CPU by default.

    Raises:
        ModelError: it is not there.
    """
    if device is None:
        return _best_device()
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as problem:  # AssertionError is torch's for a build without CUDA
        reason = str(problem).splitlines()[0]
        raise ModelError(
            f"device '{device}' cannot be used here: {reason}; leave it out for the best there is, or give cpu"
        ) from None
    return where


def named_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The number format of that name.

    Raises:
        ModelError: there is none.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"dtype '{dtype}' is unknown; available: {listed(DTYPES)}")
    found: torch.dtype = getattr(torch, dtype)
    return found


def fitting_dtype(device: torch.device, index: Index | None) -> torch.dtype:
    """What a model is run in on a device if nobody says: float32 on the CPU and on MPS, as diffusers' examples have it.

    Elsewhere UNets and the transformers that were trained so run in float16, the other transformers in bfloat16 where the
    card computes in it.
    """
    if device.type not in ("cuda", "xpu"):
        return torch.float32
    if index is None or index.denoiser != "transformer":
        return torch.float16
    if index.components["transformer"][1] in HALF_TRANSFORMERS:
        return torch.float16
    return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float16


def dtypes_of(dtype: torch.dtype, index: Index, *, chosen: bool) -> torch.dtype | dict[str, torch.dtype]:
    """For ``from_pretrained``: one format, or one for each component where a VAE needs more and nobody ``chosen`` one."""
    vae = index.components.get("vae", ("", ""))[1]
    if chosen or dtype == torch.float32 or vae not in FLOAT_VAES:
        return dtype
    return {"default": dtype, "vae": torch.float32}


def check_offload(offload: str, device: torch.device) -> None:
    """Whether offloading can be had.

    Raises:
        ModelError: an unknown kind, or there is no accelerator to offload from.
    """
    if offload not in OFFLOADS:
        raise ModelError(
            f"offload '{offload}' is unknown{nearest(offload, OFFLOADS)}; available: {listed(OFFLOADS)}"
        )
    if offload != "none" and device.type == "cpu":
        raise ModelError(
            f"offload '{offload}' moves weights between an accelerator and the CPU, and the device is the CPU; leave it out, "
            f"or give an accelerator such as cuda"
        )


def place(pipe: Any, device: torch.device, offload: str, *, vae_slicing: bool, vae_tiling: bool) -> Any:
    """Put a pipeline where it runs, by the methods of diffusers that have these names.

    Raises:
        ModelError: it does not have what was asked for.
    """
    if vae_slicing:
        _switch_on(pipe, "slicing")
    if vae_tiling:
        _switch_on(pipe, "tiling")
    if device.type == "mps" and getattr(pipe, "unet", None) is not None and _memory_gib() < PLENTY_GIB:
        pipe.enable_attention_slicing()
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        stream = device.type == "cuda"
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=stream)
    else:
        pipe = pipe.to(device)
    return pipe


def _switch_on(pipe: Any, what: str) -> None:
    vae = getattr(pipe, "vae", None)
    switch = getattr(vae, f"enable_{what}", None)
    if switch is None:
        raise ModelError(f"the VAE of this pipeline ({type(vae).__name__}) has no {what}; leave it out")
    try:
        switch()
    except NotImplementedError as problem:
        raise ModelError(f"{problem}; leave it out") from None


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
