"""What do step hooks that do nothing cost? Microseconds per step of ten of them, as a part of a playground step.

    python tests/benchmarks/hook_overhead.py

The cost is too small to be seen beside a real denoiser, so it is measured on the kit's fake pipeline, whose denoiser takes
microseconds: runs with ten hooks and without alternate, and the difference of a round is divided by its steps. The
playground's step is measured in the same rounds. Reported are medians; nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sldcore import SafetyEngine, load_pipeline
from sldcore.testing import FakePipeline
from sldcore.types import Predictions, Step


class Idle:
    """A step hook that does nothing."""

    name, version = "idle", "1.0"

    def before_guidance(self, step: Step, predictions: Predictions) -> None:
        """Nothing."""

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> None:
        """Nothing."""


def seconds_per_step(call: Callable[[], Any], steps: int) -> float:
    """Wall time of one call, divided by its steps."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) / steps


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hooks", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=100)
    asked = parser.parse_args()
    hooks = [Idle() for _ in range(asked.hooks)]
    fake, playground = FakePipeline(), load_pipeline("playground", dtype="float32")
    playground.set_progress_bar_config(disable=True)
    engines = {
        "without": SafetyEngine(fake, "max"),
        "with": SafetyEngine(fake, "max", hooks),
        "playground": SafetyEngine(playground, "max"),
    }
    steps = {"without": asked.steps, "with": asked.steps, "playground": 20}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(asked.rounds + 1):
        for name in sorted(engines, reverse=bool(number % 2)):
            engine, count = engines[name], steps[name]
            took = seconds_per_step(
                lambda engine=engine, count=count: engine.generate("a red knight", num_inference_steps=count),
                count,
            )
            if number:  # the first round warms up
                times[name].append(took)
    cost = statistics.median(one - other for one, other in zip(times["with"], times["without"], strict=True))
    step = statistics.median(times["playground"])
    print(
        f"{asked.hooks} hooks: {cost * 1e6:.1f} us per step; a playground step: {step * 1e3:.2f} ms; "
        f"overhead {100 * cost / step:.2f} % (medians of {asked.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
