"""What ``sld generate`` is asked for, checked without loading torch.

Whatever is wrong with a request is found here if it can be found on the host: before minutes of loading, and before
anything is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from sldcore.cli.policy import find_policy
from sldcore.errors import ConfigurationError, ModelError, PolicyError, nearest
from sldcore.loading.index import read_index, refuse_pickle
from sldcore.policy import SafetyPolicy
from sldcore.resolution import check_policies, common_scheduler

PLAYGROUND: Final = "playground"
DEFAULT_FPS: Final = 16
DECIDING: Final = ("transformer", "config")
"""Options of loading that decide what a picture looks like."""

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DEVICE: Final = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
_HIGHEST_SEED: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to make."""

    index: int
    prompt: str
    seed: int
    policy: SafetyPolicy
    compare: bool

    @property
    def files(self) -> dict[str, str]:
        """Names of its files by role, in the order of writing: the picture itself last."""
        stem = f"{self.index:04d}-{self.seed}"
        roles = {
            "unguided": "unguided",
            "difference": "difference",
            "comparison": "compare",
            "curves": "curves",
        }
        extra = {role: f"{stem}-{suffix}.png" for role, suffix in roles.items()} if self.compare else {}
        return {**extra, "picture": f"{stem}.png"}

    @property
    def video(self) -> str:
        """Name of the animation that is written too if the model makes videos; the others then show the middle frame."""
        return f"{self.index:04d}-{self.seed}.webp"


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that was asked for, checked.

    ``arguments`` go to the pipeline, the strength of guidance under whatever name it has there; ``loading`` to ``load_pipeline``.
    """

    pictures: tuple[Picture, ...]
    model: str
    arguments: Mapping[str, Any]
    out: Path
    batch_size: int
    device: str | None
    dtype: str | None
    audit: Path | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    fps: int = DEFAULT_FPS

    @property
    def key(self) -> dict[str, Any]:
        """What decides a picture beside its prompt, seed and policy; kept in its metadata."""
        files = {name: str(self.loading[name]) for name in DECIDING if self.loading.get(name) is not None}
        return {"model": self.model, "dtype": self.dtype, "arguments": dict(self.arguments), **files}


def pipeline_arguments(
    model: str,
    steps: int,
    scale: float | None,
    negative: str | None,
    width: int | None,
    height: int | None,
    num_frames: int | None = None,
) -> dict[str, Any]:
    """The pipeline's arguments, checked; those left to the model are left out.

    Raises:
        ConfigurationError: one of them makes no sense.
    """
    if scale is None and model == PLAYGROUND:
        scale = 4.0
    if scale is not None and (not math.isfinite(scale) or scale < 0):
        raise ConfigurationError(f"--guidance-scale must be a number of 0 or more, got {scale}")
    if negative is not None:
        _check_text(negative, "the negative prompt")
    for name, size in (("width", width), ("height", height)):
        if size is not None and size % 8:
            raise ConfigurationError(
                f"--{name} must be a multiple of 8, got {size}; the nearest is {_near(size)}"
            )
    given = {
        "guidance_scale": scale,
        "negative_prompt": negative,
        "width": width,
        "height": height,
        "num_frames": num_frames,
    }
    return {
        "num_inference_steps": steps,
        **{name: value for name, value in given.items() if value is not None},
    }


def _near(size: int) -> int:
    return 8 * round(size / 8)


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what} is not valid UTF-8: {text!a}") from None


def read_policies(asked: Sequence[str], prompts: int) -> list[SafetyPolicy]:
    """One policy per prompt; all that they name is looked up, so that what is missing or broken is an error now.

    Raises:
        PolicyError: a policy that cannot be had, or more than one but not one per prompt.
        ConfigurationError: a policy names something that cannot be had.
    """
    if len(asked) not in (1, prompts):
        raise PolicyError(
            f"{len(asked)} policies for {prompts} prompt{'s' if prompts > 1 else ''}; give one for all, or one per prompt"
        )
    found = [find_policy(name) for name in asked]
    check_policies(found)
    common_scheduler(found)
    return found * prompts if len(found) == 1 else found


def plan_pictures(
    prompts: Sequence[str], policies: Sequence[SafetyPolicy], seed: int, count: int, compare: bool
) -> tuple[Picture, ...]:
    """All pictures, prompt by prompt; picture j of each takes seed + j.

    Raises:
        ConfigurationError: a prompt is empty or no text, or a seed is too high.
    """
    for number, prompt in enumerate(prompts, start=1):
        _check_text(prompt, f"prompt {number}")
        if not prompt.strip():
            raise ConfigurationError(f"prompt {number} is empty; say what to show, in quotes")
    if seed + count - 1 > _HIGHEST_SEED:
        raise ConfigurationError(
            f"--seed must stay below 2^63 for every picture, got {seed} for {count} pictures"
        )
    return tuple(
        Picture(number * count + offset, prompt, seed + offset, policy, compare)
        for number, (prompt, policy) in enumerate(zip(prompts, policies, strict=True))
        for offset in range(count)
    )


def _check_model(model: str, loading: Mapping[str, Any]) -> None:
    path = Path(model)
    if model == PLAYGROUND:
        pass
    elif path.is_dir():
        read_index(path).check(trust_remote_code=bool(loading.get("trust_remote_code")))
    elif path.is_file():
        refuse_pickle(path)
    elif not _HUB_ID.fullmatch(model):
        raise ModelError(
            f"no model '{model}'{nearest(model, [PLAYGROUND])}; give 'playground', the path of a diffusers folder or a "
            ".safetensors checkpoint, or a hub id such as organisation/name"
        )
    for option in DECIDING:
        if loading.get(option) is not None and not Path(loading[option]).exists():
            raise ModelError(f"--{option} {loading[option]}: no such file or folder")


def check_place(model: str, device: str | None, out: Path, loading: Mapping[str, Any] | None = None) -> None:
    """Whether model, device and output folder can exist; what needs torch is found out when the model is loaded.

    Raises:
        ConfigurationError: one of them cannot.
    """
    _check_model(model, loading or {})
    if device is not None and not _DEVICE.fullmatch(device):
        raise ConfigurationError(f"unknown device '{device}'; give cpu, cuda, cuda:N, xpu or mps")
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"--out {out} is a file; name a folder")
    nearest_folder = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not nearest_folder.is_dir() or not _writable(nearest_folder):
        raise ConfigurationError(f"--out {out} cannot be written to; name a folder that can")


def _writable(folder: Path) -> bool:
    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_guidance(policies: Sequence[SafetyPolicy], scale: float | None) -> None:
    """Whether the policies can act: guidance needs an unconditional prediction. None is the pipeline's own scale.

    Raises:
        ConfigurationError: a guiding policy without classifier-free guidance.
    """
    guiding = [policy.name for policy in policies if policy.guides]
    if guiding and scale is not None and scale <= 1:
        raise ConfigurationError(
            f"--guidance-scale {scale:g} turns classifier-free guidance off, and policy '{guiding[0]}' cannot act "
            "without it; give a scale above 1, or --policy off"
        )
