"""Noise schedulers by name, made from the config of the pipeline's own with diffusers' classes."""

from __future__ import annotations

from typing import Any, Final

from sldcore.contributions import NoOptions, SchedulerKind

CLASSES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}
"""Name to diffusers' class and what is set beside the pipeline's config."""


def scheduler_kinds() -> list[SchedulerKind]:
    """The core's schedulers as contributions."""
    return [_kind(name) for name in CLASSES]


def _kind(name: str) -> SchedulerKind:
    class_name, settings = CLASSES[name]

    def create(config: Any, options: NoOptions) -> Any:
        import diffusers

        return getattr(diffusers, class_name).from_config(config, **settings)

    return SchedulerKind(name=name, description=f"diffusers' {class_name}", create=create)
