"""The contract of post-filters, on ``nudenet``."""

import sld_filter_nudenet

from sldcore.testing import PostFilterContract


class TestNudeNet(PostFilterContract):
    """Runs on the real weights."""

    (contribution,) = sld_filter_nudenet.sld_post_filters()
