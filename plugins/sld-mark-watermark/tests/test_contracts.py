"""The contracts of marks and commands, on ``watermark``."""

import numpy as np
import sld_mark_watermark
from PIL import Image

from sldcore.testing import CommandContract, MarkContract


class TestWatermark(MarkContract):
    """On pictures that are large enough."""

    (contribution,) = sld_mark_watermark.sld_marks()

    def pictures(self):
        """Noise and a flat colour."""
        noise = np.random.default_rng(3).integers(0, 256, (256, 320, 3), dtype=np.uint8)
        return [Image.fromarray(noise), Image.new("RGB", (300, 260), (90, 120, 160))]


class TestCommand(CommandContract):
    """The command that looks for marks."""

    (contribution,) = sld_mark_watermark.sld_commands()
