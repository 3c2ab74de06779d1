"""The contract of windows, on the three ramps."""

import sld_schedules

from sldcore.testing import WindowContract

LINEAR, COSINE, NOISE = sld_schedules.sld_windows()


class TestLinearRamp(WindowContract):
    """Rising over the whole run."""

    contribution = LINEAR


class TestFallingLinearRamp(WindowContract):
    """Fading out in the middle of the run."""

    contribution = LINEAR
    options = {"start": 0.2, "stop": 0.8, "direction": "fall"}  # noqa: RUF012


class TestCosineRamp(WindowContract):
    """Rising over the whole run."""

    contribution = COSINE


class TestNoiseRamp(WindowContract):
    """Rising while the noise falls."""

    contribution = NOISE


class TestFallingNoiseRamp(WindowContract):
    """Fading with the noise, gently."""

    contribution = NOISE
    options = {"start": 0.9, "stop": 0.3, "direction": "fall", "shape": "cosine"}  # noqa: RUF012
