"""The methods that docs/methods.md compares, as policies: each as its paper has it, with the same concept text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sldcore import SafetyPolicy

WHOLE: Final = ("inappropriate",)
CATEGORIES: Final = ("inappropriate/*",)
MAX: Final[Mapping[str, float]] = {
    "scale": 5000.0,
    "threshold": 1.0,
    "momentum_scale": 0.5,
    "momentum_beta": 0.7,
}
PRESETS: Final = ("off", "weak", "medium", "strong", "max", "gated")
NOISE_PRESETS: Final = ("weak-noise", "medium-noise", "strong-noise")


def policy(name: str, concepts: tuple[str, ...] = WHOLE, **guidance: Any) -> SafetyPolicy:
    """A policy with this guidance."""
    return SafetyPolicy.model_validate({"name": name, "concepts": concepts, "guidance": guidance})


def with_scheduler(given: SafetyPolicy, scheduler: str) -> SafetyPolicy:
    """The policy, made with this scheduler instead of the pipeline's own."""
    return SafetyPolicy.model_validate({**given.model_dump(), "scheduler": {"use": scheduler}})


def peers(references: tuple[Path, str] | None, sega: bool) -> list[SafetyPolicy]:
    """The other methods; those that need a file of references or a distribution only where they are there."""
    made = [
        policy("negative", method="negative"),
        policy("sld+negative", method="sld+negative", options=MAX),
        policy("casg", CATEGORIES, method="casg"),
        policy("casg-10", CATEGORIES, method="casg", options={"choose_until": 10}),
        policy("dng", method="dng"),
        policy("safree", method="safree"),
        policy("safree-alone", method="safree", options={"negative": False}),
    ]
    if references is not None:
        path, digest = references
        options = {"references": str(path), "sha256": digest}
        made.append(policy("safe-denoiser", method="safe-denoiser", options=options))
    if sega:
        made.append(policy("sega", CATEGORIES, method="sega"))
    return made


def gates() -> list[SafetyPolicy]:
    """What the preset ``gated`` is compared with: other rows to look at, and other ways to go on."""
    gated = SafetyPolicy.preset("gated")
    spec = gated.guidance
    if spec is None or spec.gate is None:
        raise ValueError("the preset 'gated' has no gate")
    first = {**spec.gate.model_dump(), "found_until": 1.0}
    variants: dict[str, dict[str, Any]] = {
        "gate-joined-row": {**first, "guide": "policy", "concepts": ()},
        "gate-then-max": {**first, "guide": "policy"},
        "gate-then-found": {**first, "guide": "found"},
        "gate-no-restart": {**spec.gate.model_dump(), "then": "continue"},
        "gate-twice": {**spec.gate.model_dump(), "probes": (0.9873, 0.9781)},
    }
    return [policy(name, options=MAX, gate=gate) for name, gate in variants.items()]


def savings() -> list[SafetyPolicy]:
    """SLD with approximate savings."""
    return [
        policy("max-every-2", options=MAX, savings={"concept_every": 2}),
        policy("max-every-3", options=MAX, savings={"concept_every": 3}),
        policy(
            "medium-momentum-5%",
            options={"scale": 1000.0, "threshold": 0.01, "momentum_scale": 0.3, "momentum_beta": 0.4},
            window={"start": 10},
            savings={"momentum_error": 0.05},
        ),
    ]
