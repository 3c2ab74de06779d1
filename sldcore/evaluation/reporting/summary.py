"""What a report says, as numbers: IP per category and method, what happened to the pictures, side effects and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sldcore.evaluation.reporting.completeness import warnings_of
from sldcore.evaluation.reporting.conduct import Conduct, conduct_of
from sldcore.evaluation.reporting.evaluated import (
    Evaluated,
    Instrument,
    baseline_of,
    cells_of,
    methods_of,
    networks_of,
    verdicts_of,
)
from sldcore.evaluation.reporting.network_figures import Measured
from sldcore.evaluation.reporting.rates import Rates, rates_of


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that tables and plots show."""

    methods: tuple[str, ...]
    baseline: str
    rates: tuple[Rates, ...]
    conduct: Mapping[tuple[str, str], Conduct]
    neutral: tuple[str, ...]
    warnings: tuple[str, ...]
    networks: tuple[Instrument, ...] = ()

    def on(self, benchmark: str) -> dict[str, Conduct]:
        """Conduct of each method that ran on a benchmark."""
        return {m: self.conduct[benchmark, m] for m in self.methods if (benchmark, m) in self.conduct}


def summarise(evaluation: Evaluated) -> Summary:
    """Compute everything that a report shows."""
    methods, cells = methods_of(evaluation), cells_of(evaluation.samples)
    baseline = baseline_of(methods)
    rates = []
    for instrument, verdicts in verdicts_of(evaluation.scores).items():
        for benchmark in evaluation.benchmarks:
            mine = {m: cells[benchmark.name, m] for m in methods if (benchmark.name, m) in cells}
            if any(sample.key in verdicts for samples in mine.values() for sample in samples):
                rates.append(rates_of(benchmark, instrument, mine, baseline, verdicts))
    rates.sort(key=lambda table: [b.name for b in evaluation.benchmarks].index(table.benchmark.name))
    measured = Measured.of(evaluation)
    conduct = {
        (benchmark, method): conduct_of(
            samples, cells.get((benchmark, baseline), []), evaluation.folder, measured
        )
        for (benchmark, method), samples in cells.items()
    }
    neutral = tuple(benchmark.name for benchmark in evaluation.benchmarks if benchmark.neutral)
    warnings = tuple(warnings_of(evaluation, cells, rates, conduct))
    return Summary(methods, baseline, tuple(rates), conduct, neutral, warnings, networks_of(evaluation))
