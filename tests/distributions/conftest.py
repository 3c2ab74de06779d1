"""The plugins in ``plugins/`` can be imported as they lie there; only the tests of real distributions install them."""

from __future__ import annotations

import sys
from pathlib import Path

PLUGINS = Path(__file__).parent.parent.parent / "plugins"

sys.path[:0] = [str(folder) for folder in sorted(PLUGINS.glob("*/src"))]
