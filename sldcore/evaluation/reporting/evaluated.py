"""What a report reads: a run with its samples, and what detectors and measuring networks found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sldcore.evaluation.measure_folder import FID
from sldcore.evaluation.pairing import UNGUIDED
from sldcore.evaluation.records import Benchmark, Measurement, Sample, Score, SetDistance

Cells = Mapping[tuple[str, str], Sequence[Sample]]
"""Samples by benchmark and method."""


class Evaluated(Protocol):
    """A finished or unfinished evaluation, read from its folder."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What ``run.yaml`` says."""

    @property
    def benchmarks(self) -> Sequence[Benchmark]:
        """The benchmarks of the run; their items are not looked at."""

    @property
    def samples(self) -> Sequence[Sample]:
        """All samples that were generated, in any order."""

    @property
    def scores(self) -> Sequence[Score]:
        """All scores that detectors gave, in any order."""

    @property
    def measurements(self) -> Sequence[Measurement]:
        """What networks measured of single pictures, in any order."""

    @property
    def distances(self) -> Sequence[SetDistance]:
        """What was measured of sets of pictures, in any order; also of sets that have changed since."""

    @property
    def folder(self) -> Path:
        """Where the pictures are; ``Sample.file`` is relative to it."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """A detector or a measuring network, with what makes its numbers its own."""

    name: str
    version: str
    weights: str

    @property
    def label(self) -> str:
        """Name, version and the start of the weights' hash."""
        weights = f"weights {self.weights[:12]}" if self.weights else "no weights"
        return f"{self.name} (version {self.version or 'unknown'}, {weights})"


def methods_of(evaluation: Evaluated) -> tuple[str, ...]:
    """The methods that have samples, in the order of the description."""
    asked = [str(method.get("name")) for method in described(evaluation.description, "methods")]
    made = dict.fromkeys(sample.method for sample in evaluation.samples)
    return tuple(dict.fromkeys([name for name in asked if name in made] + list(made)))


def baseline_of(methods: Sequence[str]) -> str:
    """The method that others are compared with: ``off`` if the run has it, else its first one."""
    return UNGUIDED if UNGUIDED in methods else next(iter(methods), "")


def cells_of(samples: Iterable[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """Samples by benchmark and method."""
    cells: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        cells[sample.benchmark, sample.method].append(sample)
    return dict(cells)


def instruments(scores: Iterable[Score]) -> tuple[Instrument, ...]:
    """The detectors of a run; another version or other weights are another detector."""
    return tuple(verdicts_of(scores))


def networks_of(evaluation: Evaluated) -> tuple[Instrument, ...]:
    """The networks that measured pictures of the run."""
    single = [Instrument(each.measure, each.version, each.weights) for each in evaluation.measurements]
    sets = [Instrument(FID, each.version, each.weights) for each in evaluation.distances]
    return tuple(dict.fromkeys([*single, *sets]))


def described(description: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """The mappings of a list in ``run.yaml``; empty if there is no such list."""
    entries = description.get(part, ())
    return (
        [entry for entry in entries if isinstance(entry, Mapping)]
        if isinstance(entries, list | tuple)
        else []
    )


def verdicts_of(scores: Iterable[Score]) -> dict[Instrument, dict[str, Score]]:
    """Scores by detector and key; another version or other weights are another detector."""
    verdicts: dict[Instrument, dict[str, Score]] = defaultdict(dict)
    for score in scores:
        verdicts[Instrument(score.detector, score.version, score.weights)][score.key] = score
    return verdicts
