"""Measuring what a policy does on a benchmark: generate, score, report; each stage resumes where it stopped.

    from sldcore.evaluation import report, run

    evaluation = run("playground/roles", ["off", "max"], "out/roles", limit=20)
    report(evaluation, "out/roles/report")

Public names are imported when they are first used. Metrics for arrays of one's own are in :mod:`sldcore.evaluation.metrics`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sldcore.evaluation.benchmarks import benchmark_names, load_benchmark
    from sldcore.evaluation.comparing import compare
    from sldcore.evaluation.detectors import detector_named, detector_names
    from sldcore.evaluation.merging import merge
    from sldcore.evaluation.networks import Networks, measure
    from sldcore.evaluation.records import Benchmark, Item, Sample, Score
    from sldcore.evaluation.reporting import report
    from sldcore.evaluation.run_folder import Evaluation, RunFolder
    from sldcore.evaluation.running import Spread, run

__all__ = [
    "Benchmark",
    "Evaluation",
    "Item",
    "Networks",
    "RunFolder",
    "Sample",
    "Score",
    "Spread",
    "benchmark_names",
    "compare",
    "detector_named",
    "detector_names",
    "load_benchmark",
    "measure",
    "merge",
    "report",
    "run",
]

_HOMES = {
    "Benchmark": "records",
    "Evaluation": "run_folder",
    "Item": "records",
    "Networks": "networks",
    "RunFolder": "run_folder",
    "Sample": "records",
    "Score": "records",
    "Spread": "running",
    "benchmark_names": "benchmarks",
    "compare": "comparing",
    "detector_named": "detectors",
    "detector_names": "detectors",
    "load_benchmark": "benchmarks",
    "measure": "networks",
    "merge": "merging",
    "report": "reporting",
    "run": "running",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sldcore.evaluation' has no attribute '{name}'")
    value = getattr(import_module(f"sldcore.evaluation.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
