"""What a run has still to do and what that costs, for ``--dry-run``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sldcore.evaluation.planning import Plan
from sldcore.evaluation.run_folder import RunFolder
from sldcore.evaluation.workers import Share


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run has still to do.

    ``rows`` are denoiser rows, at most; ``seconds`` and ``bytes`` are None if nothing is there to estimate them from.
    """

    samples: int
    missing: int
    rows: int
    seconds: float | None
    bytes: int | None
    methods: Mapping[str, int]
    """Missing samples by method."""


def outlook(folder: RunFolder, plan: Plan, share: Share | None = None) -> Outlook:
    """What is to be done and what it costs, by what the folder has already; nothing is written."""
    batches = plan.batches() if share is None else share.batches(plan.batches())
    there = {}
    if folder.path.is_dir():
        there = {(s.benchmark, s.item, s.image, s.method): s for s in folder.samples()}
    keys = {identity: sample.key for identity, sample in there.items()}
    missing: dict[str, int] = dict.fromkeys((method.name for method in plan.methods), 0)
    rows = 0
    for batch in batches:
        open_ = [wanted for wanted in batch.members if keys.get(wanted.identity) != wanted.key]
        for wanted in open_:
            missing[wanted.method] += 1
        rows += len(open_) * plan.settings.steps * (2 + len(batch.method.policy.concepts))
    made = [sample for sample in there.values() if sample.rows]
    seconds = (
        sum(sample.seconds for sample in made) / sum(sample.rows for sample in made) * rows if made else None
    )
    sizes = [
        folder.picture_of(s).stat().st_size for s in made[:200] if s.file and folder.picture_of(s).exists()
    ]
    total = sum(missing.values())
    return Outlook(
        samples=sum(len(batch.members) for batch in batches),
        missing=total,
        rows=rows,
        seconds=seconds,
        bytes=round(sum(sizes) / len(sizes) * total) if sizes else None,
        methods=missing,
    )
