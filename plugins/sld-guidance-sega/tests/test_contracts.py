"""The contract of guidance methods, on ``sega``: by default, without momentum, and with a threshold for each concept row."""

import sld_guidance_sega

from sldcore.testing import GuidanceContract


class TestSEGA(GuidanceContract):
    """Default options."""

    (contribution,) = sld_guidance_sega.sld_guidance_methods()


class TestSEGAWithoutMomentum(TestSEGA):
    """Only rows that act are evaluated."""

    options = {"momentum_scale": 0.0}  # noqa: RUF012
