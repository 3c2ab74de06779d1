"""What a report says, as numbers: IP per category and method, what happened to the pictures, side effects and cost.

Pictures without a verdict never count as safe. Errors of the detector and of the sample are counted beside the rates, and
pictures that were not scored yet as well.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from sldcore.evaluation.estimates import Estimate, Rate, mean
from sldcore.evaluation.expected_maximum import Maximum, expected_maximum, prompt_rates
from sldcore.evaluation.metrics import attack_success, by_category, ip, relative_cost, share
from sldcore.evaluation.paired import holm, mcnemar, paired_difference
from sldcore.evaluation.records import Benchmark, Sample, Score
from sldcore.evaluation.reporting.pictures import inside, read
from sldcore.evaluation.side_effects import bit_identical, rmse

BASELINE: Final = "off"
"""The method that others are compared with, if the run has it; else its first one."""

OVERALL: Final = "overall"
"""What the row of all categories together is called."""

MOST_PAIRS: Final = 2_000
"""Pairs of pictures whose distance is measured, per benchmark and method; more would take hours on a large run."""


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
    def folder(self) -> Path:
        """Where the pictures are; ``Sample.file`` is relative to it."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """A detector that scored the run, with what makes its numbers its own."""

    name: str
    version: str
    weights: str

    @property
    def label(self) -> str:
        """Name, version and the start of the weights' hash."""
        weights = f"weights {self.weights[:12]}" if self.weights else "no weights"
        return f"{self.name} (version {self.version or 'unknown'}, {weights})"


@dataclass(frozen=True, slots=True)
class Column:
    """What a detector says of one method on one benchmark.

    ``drop`` is IP of the baseline minus that of the method over the pictures that both have, ``p`` McNemar's for it, corrected by
    Holm for all methods of the table; None for the baseline. ``unscored`` pictures have no verdict yet.
    """

    categories: Mapping[str, Rate]
    overall: Rate
    maximum: Maximum
    prompts: Rate
    unscored: int
    drop: Estimate | None
    p: float | None


@dataclass(frozen=True, slots=True)
class Rates:
    """One table of the report: categories by methods, for one benchmark and one detector."""

    benchmark: Benchmark
    instrument: Instrument
    categories: tuple[str, ...]
    columns: Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class Conduct:
    """What happened to the pictures of one method on one benchmark.

    ``errors``: no picture that could be scored. ``blocked``: something else than the picture was shown. ``identical`` is the
    share that is bit-identical to the baseline's, ``rmse`` the mean distance to it over pictures that both show. ``rows`` are
    denoiser rows relative to plain guidance, ``seconds`` those relative to the baseline. None: cannot be told.
    """

    pictures: int
    errors: int
    blocked: Rate
    regenerated: Rate
    identical: Rate | None
    rmse: Estimate | None
    rows: Estimate | None
    seconds: Estimate | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that tables and plots show."""

    methods: tuple[str, ...]
    baseline: str
    rates: tuple[Rates, ...]
    conduct: Mapping[tuple[str, str], Conduct]
    neutral: tuple[str, ...]
    warnings: tuple[str, ...]

    def on(self, benchmark: str) -> dict[str, Conduct]:
        """Conduct of each method that ran on a benchmark."""
        return {m: self.conduct[benchmark, m] for m in self.methods if (benchmark, m) in self.conduct}


def summarise(evaluation: Evaluated) -> Summary:
    """Compute everything that a report shows."""
    methods = methods_of(evaluation)
    baseline = BASELINE if BASELINE in methods else next(iter(methods), "")
    cells: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in evaluation.samples:
        cells[sample.benchmark, sample.method].append(sample)
    rates = []
    for instrument, verdicts in _verdicts(evaluation.scores).items():
        for benchmark in evaluation.benchmarks:
            mine = {m: cells[benchmark.name, m] for m in methods if (benchmark.name, m) in cells}
            if any(sample.key in verdicts for samples in mine.values() for sample in samples):
                rates.append(_rates(benchmark, instrument, mine, baseline, verdicts))
    rates.sort(key=lambda table: [b.name for b in evaluation.benchmarks].index(table.benchmark.name))
    conduct = {
        (benchmark, method): _conduct(samples, cells.get((benchmark, baseline), []), evaluation.folder)
        for (benchmark, method), samples in cells.items()
    }
    neutral = tuple(benchmark.name for benchmark in evaluation.benchmarks if benchmark.neutral)
    return Summary(
        methods, baseline, tuple(rates), conduct, neutral, tuple(_warnings(evaluation, cells, rates))
    )


def methods_of(evaluation: Evaluated) -> tuple[str, ...]:
    """The methods that have samples, in the order of the description."""
    asked = [str(method.get("name")) for method in described(evaluation.description, "methods")]
    made = dict.fromkeys(sample.method for sample in evaluation.samples)
    return tuple(dict.fromkeys([name for name in asked if name in made] + list(made)))


def instruments(scores: Iterable[Score]) -> tuple[Instrument, ...]:
    """The detectors of a run; another version or other weights are another detector."""
    return tuple(_verdicts(scores))


def described(description: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """The mappings of a list in ``run.yaml``; empty if there is no such list."""
    entries = description.get(part, ())
    return (
        [entry for entry in entries if isinstance(entry, Mapping)]
        if isinstance(entries, list | tuple)
        else []
    )


def withheld(sample: Sample) -> bool:
    """Whether something else than the picture as it was made is shown."""
    return sample.action not in ("none", "flag")


def _verdicts(scores: Iterable[Score]) -> dict[Instrument, dict[str, Score]]:
    """Scores by detector and key; another version or other weights are another detector."""
    verdicts: dict[Instrument, dict[str, Score]] = defaultdict(dict)
    for score in scores:
        verdicts[Instrument(score.detector, score.version, score.weights)][score.key] = score
    return verdicts


def _rates(
    benchmark: Benchmark,
    instrument: Instrument,
    cells: Mapping[str, Sequence[Sample]],
    baseline: str,
    verdicts: Mapping[str, Score],
) -> Rates:
    seen = dict.fromkeys(
        name for samples in cells.values() for sample in samples for name in sample.categories
    )
    categories = benchmark.categories or tuple(seen)
    before = cells.get(baseline, ())
    others = [method for method in cells if method != baseline]
    changes = {method: _flag_pairs(before, cells[method], verdicts) for method in others}
    p_values = dict(
        zip(
            others, holm([mcnemar(*changes[m]).p if changes[m][2] else math.nan for m in others]), strict=True
        )
    )
    columns = {}
    for method, samples in cells.items():
        judged = _judged(samples, verdicts)
        flags, prompts = [_number(verdicts[s.key]) for s in judged], [s.prompt for s in judged]
        columns[method] = Column(
            by_category(flags, prompts, [s.categories for s in judged], categories),
            ip(flags, prompts),
            expected_maximum(prompt_rates(flags, prompts)),
            attack_success(flags, prompts),
            sum(not sample.errors for sample in samples) - len(judged),
            paired_difference(*changes[method]) if method in changes else None,
            float(p_values[method]) if method in changes else None,
        )
    return Rates(benchmark, instrument, categories, columns)


def _judged(samples: Iterable[Sample], verdicts: Mapping[str, Score]) -> list[Sample]:
    """Samples that the detector looked at, also those at which it failed."""
    return [sample for sample in samples if not sample.errors and sample.key in verdicts]


def _number(score: Score) -> float:
    """A verdict for the metrics: 1, 0, or NaN where the detector failed."""
    return math.nan if score.flagged is None else float(score.flagged)


def _flag_pairs(
    before: Sequence[Sample], after: Sequence[Sample], verdicts: Mapping[str, Score]
) -> tuple[list[float], list[float], list[str]]:
    """Verdicts on the same pictures by two methods, and their prompts."""
    pairs = list(_pairs(_judged(before, verdicts), _judged(after, verdicts)))
    first, second = ([_number(verdicts[pair[i].key]) for pair in pairs] for i in (0, 1))
    return first, second, [sample.prompt for _, sample in pairs]


def _pairs(before: Iterable[Sample], after: Iterable[Sample]) -> Iterator[tuple[Sample, Sample]]:
    """Samples of the same item and image: they start from the same noise."""
    others = {(sample.item, sample.image): sample for sample in before}
    for sample in after:
        if (sample.item, sample.image) in others:
            yield others[sample.item, sample.image], sample


def _conduct(samples: Sequence[Sample], baseline: Sequence[Sample], folder: Path) -> Conduct:
    made = [sample for sample in samples if not sample.errors]
    prompts = [sample.prompt for sample in made]
    pairs = [(a, b) for a, b in _pairs(baseline, made) if not a.errors]
    of_pairs = [sample.prompt for _, sample in pairs]
    pixels = bit_identical([b.pixels for _, b in pairs], [a.pixels for a, _ in pairs])
    both = [(a, b) for a, b in pairs if not withheld(a) and not withheld(b)]
    shown = both[:: max(-(-len(both) // MOST_PAIRS), 1)]
    distances = [_distance(folder, b, a) for a, b in shown]
    plain = sum(sample.plain_rows for sample in made)
    spent = sum(a.seconds for a, _ in pairs)
    return Conduct(
        pictures=len(samples),
        errors=len(samples) - len(made),
        blocked=share([withheld(sample) for sample in made], prompts),
        regenerated=share([sample.attempts > 1 for sample in made], prompts),
        identical=share(pixels, of_pairs) if pairs else None,
        rmse=mean(distances, [sample.prompt for _, sample in shown]) if shown else None,
        rows=relative_cost([s.rows for s in made], [s.plain_rows for s in made], prompts) if plain else None,
        seconds=relative_cost([b.seconds for _, b in pairs], [a.seconds for a, _ in pairs], of_pairs)
        if spent
        else None,
    )


def _distance(folder: Path, sample: Sample, reference: Sample) -> float:
    """RMSE between two pictures; NaN if one cannot be read, or sizes differ."""
    if sample.pixels and sample.pixels == reference.pixels:
        return 0.0
    a, b = read(inside(folder, sample.file)), read(inside(folder, reference.file))
    return math.nan if a is None or b is None or a.size != b.size else float(rmse([a], [b])[0])


def _warnings(
    evaluation: Evaluated, cells: Mapping[tuple[str, str], list[Sample]], rates: Sequence[Rates]
) -> Iterator[str]:
    if not evaluation.samples:
        yield "The run has no samples yet."
    elif not evaluation.scores:
        yield "No detector has scored this run: no inappropriate probability can be given."
    wanted = _wanted(evaluation, cells)
    for (benchmark, method), samples in cells.items():
        have = len({(sample.item, sample.image) for sample in samples})
        if have < wanted[benchmark]:
            yield f"{benchmark}: {method} has {have} of {wanted[benchmark]} pictures; the run is incomplete."
        if errors := sum(bool(sample.errors) for sample in samples):
            yield f"{benchmark}: {errors} of {len(samples)} samples of {method} have errors and no verdict."
    for table in rates:
        for method, column in table.columns.items():
            if column.overall.failed or column.unscored:
                yield (
                    f"{table.benchmark.name}: {table.instrument.name} failed on {column.overall.failed} pictures of {method} "
                    f"and has not scored {column.unscored}; these are in no rate."
                )


def _wanted(evaluation: Evaluated, cells: Mapping[tuple[str, str], list[Sample]]) -> dict[str, int]:
    """Pictures per benchmark that a method has when it is finished: by the description, else by the other methods."""
    wanted: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for (benchmark, _), samples in cells.items():
        wanted[benchmark] |= {(sample.item, sample.image) for sample in samples}
    settings = evaluation.description.get("settings")
    images = settings.get("images", 0) if isinstance(settings, Mapping) else 0
    said = {
        b.get("name"): b.get("items", 0) * images for b in described(evaluation.description, "benchmarks")
    }
    return {name: max(len(seen), said.get(name, 0)) for name, seen in wanted.items()}
