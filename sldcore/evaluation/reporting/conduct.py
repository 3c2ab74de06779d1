"""What happened to the pictures of one method on one benchmark: errors, blocks, side effects and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sldcore.evaluation.estimates import Estimate, Rate, mean
from sldcore.evaluation.metrics import relative_cost, share
from sldcore.evaluation.pairing import pairs
from sldcore.evaluation.records import Sample
from sldcore.evaluation.reporting.network_figures import Measured, NetworkFigures, network_figures
from sldcore.evaluation.reporting.pictures import inside, read
from sldcore.evaluation.side_effects import bit_identical, rmse

MOST_PAIRS: Final = 2_000
"""Pairs of pictures whose distance is measured, per benchmark and method; more would take hours on a large run."""


@dataclass(frozen=True, slots=True)
class Conduct:
    """What happened to the pictures of one method on one benchmark.

    ``errors``: no picture that could be scored. ``blocked``: something else than the picture was shown. ``identical`` is the
    share that is bit-identical to the baseline's, ``rmse`` the mean distance to it over pictures that both show. ``rows`` are
    denoiser rows relative to plain guidance, ``seconds`` those relative to the baseline. None: cannot be told. ``networks`` is what measuring networks
    found, if any did.
    """

    pictures: int
    errors: int
    blocked: Rate
    regenerated: Rate
    identical: Rate | None
    rmse: Estimate | None
    rows: Estimate | None
    seconds: Estimate | None
    networks: NetworkFigures = field(default_factory=NetworkFigures)


def conduct_of(
    samples: Sequence[Sample], baseline: Sequence[Sample], folder: Path, measured: Measured
) -> Conduct:
    """What happened to the samples of a method; ``baseline`` are those of the method that it is compared with."""
    made = [sample for sample in samples if not sample.errors]
    prompts = [sample.prompt for sample in made]
    both = [(a, b) for a, b in pairs(baseline, made) if not a.errors]
    of_pairs = [sample.prompt for _, sample in both]
    pixels = bit_identical([b.pixels for _, b in both], [a.pixels for a, _ in both])
    seen = [(a, b) for a, b in both if not a.withheld and not b.withheld]
    some = seen[:: max(-(-len(seen) // MOST_PAIRS), 1)]
    distances = [_distance(folder, b, a) for a, b in some]
    plain = sum(sample.plain_rows for sample in made)
    spent = sum(a.seconds for a, _ in both)
    return Conduct(
        pictures=len(samples),
        errors=len(samples) - len(made),
        blocked=share([sample.withheld for sample in made], prompts),
        regenerated=share([sample.attempts > 1 for sample in made], prompts),
        identical=share(pixels, of_pairs) if both else None,
        rmse=mean(distances, [sample.prompt for _, sample in some]) if some else None,
        rows=relative_cost([s.rows for s in made], [s.plain_rows for s in made], prompts) if plain else None,
        seconds=relative_cost([b.seconds for _, b in both], [a.seconds for a, _ in both], of_pairs)
        if spent
        else None,
        networks=network_figures(samples, baseline, measured),
    )


def _distance(folder: Path, sample: Sample, reference: Sample) -> float:
    """RMSE between two pictures; NaN if one cannot be read, or sizes differ."""
    if sample.pixels and sample.pixels == reference.pixels:
        return 0.0
    a, b = read(inside(folder, sample.file)), read(inside(folder, reference.file))
    return math.nan if a is None or b is None or a.size != b.size else float(rmse([a], [b])[0])
