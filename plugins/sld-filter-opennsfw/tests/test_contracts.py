"""The contract of post-filters, on ``opennsfw``."""

import sld_filter_opennsfw

from sldcore.testing import PostFilterContract


class TestOpenNSFW(PostFilterContract):
    """Runs on the real weights."""

    (contribution,) = sld_filter_opennsfw.sld_post_filters()
