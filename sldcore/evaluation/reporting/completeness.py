"""What a reader has to know before using a run's numbers: what is missing, failed, or not scored yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from sldcore.evaluation.reporting.conduct import Conduct
from sldcore.evaluation.reporting.evaluated import Cells, Evaluated, described
from sldcore.evaluation.reporting.rates import Rates


def warnings_of(
    evaluation: Evaluated,
    cells: Cells,
    rates: Sequence[Rates],
    conduct: Mapping[tuple[str, str], Conduct],
) -> Iterator[str]:
    """One sentence for each."""
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
    for (benchmark, method), each in conduct.items():
        for name, lack in each.networks.lacking.items():
            yield (
                f"{benchmark}: {name} failed on {lack.failed} pictures of {method} and has not measured {lack.unmeasured}; these are in "
                "no mean."
            )
        for label in each.networks.outdated:
            yield f"{benchmark}: FID and KID of {method} to {label} are of other pictures than there are now, and left out."
        for found in each.networks.distances:
            if found.unreadable:
                yield f"{benchmark}: {found.unreadable} pictures could not be read for FID and KID of {method} to {found.references}."


def _wanted(evaluation: Evaluated, cells: Cells) -> dict[str, int]:
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
