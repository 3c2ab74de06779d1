"""The contracts of filters and commands, on ``hash-blocklist``."""

import numpy as np
import pytest
import sld_filter_hash_blocklist
from PIL import Image
from sld_filter_hash_blocklist.building import build_list

from sldcore.testing import CommandContract, PostFilterContract


def waves(turn: float) -> Image.Image:
    """A picture of waves, in a direction of its own."""
    down, right = np.mgrid[0:96, 0:96] / 96
    pixels = 127 + 120 * np.sin(9 * (down * np.cos(turn) + right * np.sin(turn)) + 3 * down * right)
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


class TestBlocklist(PostFilterContract):
    """The list holds one picture; it is found again, smaller and mirrored too."""

    (contribution,) = sld_filter_hash_blocklist.sld_post_filters()
    clean = (waves(1.7), Image.new("RGB", (64, 64)))

    @pytest.fixture(autouse=True)
    def _list(self, tmp_path):
        (tmp_path / "pictures").mkdir()
        waves(0.3).save(tmp_path / "pictures" / "waves.png")
        build_list(tmp_path / "pictures", tmp_path / "known.txt")
        self.options = {"file": str(tmp_path / "known.txt")}

    def flagged(self):
        """The known picture as it is, smaller, and mirrored."""
        known = waves(0.3)
        return [known, known.resize((61, 61)), known.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]


class TestCommand(CommandContract):
    """The command that makes lists."""

    (contribution,) = sld_filter_hash_blocklist.sld_commands()
