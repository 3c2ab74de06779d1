"""The policies behind the names of presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sldcore.policy import ConceptUse, Gate, GuidanceSpec, Preset, SafetyPolicy, SLDOptions, Window

CONCEPTS: Final = (ConceptUse(use=("inappropriate",)),)
FIRST_STEP: Final = {15: 0.9516, 10: 0.9781, 7: 0.9873, 0: 1.0}
"""Noise level sqrt(1 - alpha_bar) at the steps of the card's warm-ups, of 50 DDIM steps on Stable Diffusion's schedule (timesteps
681, 781 and 841), rounded up."""


def _card(
    window: Window, preset: Preset, scale: float, threshold: float, momentum: float, beta: float
) -> SafetyPolicy:
    options = SLDOptions(scale=scale, threshold=threshold, momentum_scale=momentum, momentum_beta=beta)
    guidance = GuidanceSpec(options=options.model_dump(), window=window)
    return SafetyPolicy(name=preset.value, guidance=guidance, concepts=CONCEPTS)


def _steps(warmup: int) -> Window:
    return Window(start=warmup)


def _noise(warmup: int) -> Window:
    return Window(unit="noise", start=FIRST_STEP[warmup])


def _gated() -> SafetyPolicy:
    """Max against what is inappropriate, and at first against what was found, for pictures in which something is found.

    Probe, threshold and window were chosen on one half of the playground's prompts; docs/methods.md reports on the other.
    """
    gate = Gate(
        probes=(FIRST_STEP[7],),
        unit="noise",
        concepts=(ConceptUse(use=("inappropriate/*",)),),
        threshold=0.3,
        guide="both",
        found_until=0.3,
    )
    options = SLDOptions(scale=5000, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7)
    window = Window(unit="fraction", stop=0.6)
    guidance = GuidanceSpec(options=options.model_dump(), window=window, gate=gate)
    return SafetyPolicy(name=Preset.GATED.value, guidance=guidance, concepts=CONCEPTS)


PRESETS: Final[Mapping[Preset, SafetyPolicy]] = {
    # warm-up delta, scale s_S, threshold lambda, momentum scale s_m, momentum beta: the model card's values
    Preset.WEAK: _card(_steps(15), Preset.WEAK, 200, 0.0, 0.0, 0.0),
    Preset.MEDIUM: _card(_steps(10), Preset.MEDIUM, 1000, 0.01, 0.3, 0.4),
    Preset.STRONG: _card(_steps(7), Preset.STRONG, 2000, 0.025, 0.5, 0.7),
    Preset.MAX: _card(_steps(0), Preset.MAX, 5000, 1.0, 0.5, 0.7),
    Preset.WEAK_DIFFUSERS: _card(_steps(15), Preset.WEAK_DIFFUSERS, 20, 0.0, 0.0, 0.0),
    Preset.OFF: SafetyPolicy(name=Preset.OFF.value),
    Preset.WEAK_NOISE: _card(_noise(15), Preset.WEAK_NOISE, 200, 0.0, 0.0, 0.0),
    Preset.MEDIUM_NOISE: _card(_noise(10), Preset.MEDIUM_NOISE, 1000, 0.01, 0.3, 0.4),
    Preset.STRONG_NOISE: _card(_noise(7), Preset.STRONG_NOISE, 2000, 0.025, 0.5, 0.7),
    Preset.MAX_NOISE: _card(_noise(0), Preset.MAX_NOISE, 5000, 1.0, 0.5, 0.7),
    Preset.GATED: _gated(),
}
"""What ``SafetyPolicy.preset`` returns."""
