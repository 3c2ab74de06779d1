"""Paired comparisons: of methods within a run, or of the same methods in several runs.

Pictures are paired by benchmark, item and number, so by prompt and seed. Pairs that lack a verdict are left out and counted. P-values are
corrected for the number of comparisons of one call by Holm's method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sldcore.errors import ConfigurationError, listed, nearest
from sldcore.evaluation.paired import Bootstrap, McNemar, holm, mcnemar, paired_bootstrap
from sldcore.evaluation.run_folder import Evaluation

BASELINE = "off"


@dataclass(frozen=True, slots=True)
class Condition:
    """One method of one run."""

    run: Evaluation
    method: str

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.run.folder.name}/{self.method}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """``first`` against ``second`` on the pictures that both have, as one detector sees them.

    ``difference`` is the share flagged of the first less that of the second, with bootstrap interval; ``p`` is McNemar's, ``corrected``
    Holm's of all comparisons made together. ``differing`` are settings in which the two runs differ.
    """

    benchmark: str
    detector: str
    first: str
    second: str
    difference: Bootstrap
    test: McNemar
    corrected: float
    differing: tuple[str, ...] = ()


def compare(
    runs: Sequence[Evaluation], baseline: str = BASELINE, repeats: int = 10_000
) -> tuple[Comparison, ...]:
    """Compare what can be compared: one run's methods with its baseline, or each method of the first run with the same in the others.

    Raises:
        ConfigurationError: there is nothing to compare.
    """
    found = [
        comparison
        for first, second in _pairs(runs, baseline)
        for comparison in _compared(first, second, repeats)
    ]
    if not found:
        raise ConfigurationError(
            "these runs have no scored pictures in common: pictures are paired by benchmark, item and number, and by detector with "
            "version and weights"
        )
    corrected = holm([each.test.p for each in found])
    return tuple(replace(each, corrected=float(p)) for each, p in zip(found, corrected, strict=True))


def _pairs(runs: Sequence[Evaluation], baseline: str) -> Iterator[tuple[Condition, Condition]]:
    if not runs:
        raise ConfigurationError("give at least one run")
    first = runs[0]
    if len(runs) == 1:
        if baseline not in first.methods:
            raise ConfigurationError(
                f"{first.folder} has no method '{baseline}'{nearest(baseline, first.methods)} (its methods: {listed(first.methods)})"
            )
        for method in first.methods:
            if method != baseline:
                yield Condition(first, baseline), Condition(first, method)
        return
    for other in runs[1:]:
        shared = [method for method in first.methods if method in other.methods]
        if not shared:
            raise ConfigurationError(
                f"{first.folder} ({listed(first.methods)}) and {other.folder} ({listed(other.methods)}) have no method in common"
            )
        for method in shared:
            yield Condition(first, method), Condition(other, method)


def _compared(first: Condition, second: Condition, repeats: int) -> Iterator[Comparison]:
    a, b = _verdicts(first), _verdicts(second)
    prompts = {
        (s.benchmark, s.item, s.image): s.prompt for s in first.run.samples if s.method == first.method
    }
    theirs = {
        (s.benchmark, s.item, s.image): s.prompt for s in second.run.samples if s.method == second.method
    }
    differing = tuple(_differing(first.run, second.run))
    for instrument in [each for each in a if each in b]:
        for benchmark in first.run.benchmarks:
            shared = [
                where
                for where in a[instrument]
                if where[0] == benchmark.name and where in b[instrument] and prompts[where] == theirs[where]
            ]
            if shared:
                flags = [a[instrument][where] for where in shared], [b[instrument][where] for where in shared]
                clusters = [prompts[where] for where in shared]
                yield Comparison(
                    benchmark.name,
                    instrument[0],
                    first.label,
                    second.label,
                    paired_bootstrap(*_numbers(flags), clusters, repeats),
                    mcnemar(*_numbers(flags), clusters),
                    1.0,
                    differing,
                )


def _numbers(flags: tuple[list[bool | None], list[bool | None]]) -> tuple[list[float], list[float]]:
    first, second = ([float("nan") if flag is None else float(flag) for flag in each] for each in flags)
    return first, second


_Where = tuple[str, str, int]
_Instrument = tuple[str, str, str]


def _verdicts(condition: Condition) -> dict[_Instrument, dict[_Where, bool | None]]:
    """Verdicts by detector with its version and weights, and by picture."""
    found: dict[_Instrument, dict[_Where, bool | None]] = {}
    samples = [sample for sample in condition.run.samples if sample.method == condition.method]
    by_key: dict[str, list[_Where]] = {}
    for sample in samples:
        by_key.setdefault(sample.key, []).append((sample.benchmark, sample.item, sample.image))
    for score in condition.run.scores:
        for where in by_key.get(score.key, ()):
            found.setdefault((score.detector, score.version, score.weights), {})[where] = score.flagged
    return found


def _differing(first: Evaluation, second: Evaluation) -> Iterator[str]:
    a, b = first.description["settings"], second.description["settings"]
    yield from (name for name in sorted({*a, *b}) if a.get(name) != b.get(name))
