"""Joining folders that hold parts of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sldcore.documents import parse_mapping, write_bytes_atomically
from sldcore.errors import ConfigurationError
from sldcore.evaluation.measure_folder import FID, MEASURE_FILE
from sldcore.evaluation.run_folder import DETECTOR_FILE, RunFolder


def merge(out: Path, runs: Sequence[Path]) -> RunFolder:
    """One folder of several that hold parts of the same run: shards made on machines that share no disk.

    Pictures are copied. What ``out`` has already is kept, so that a merge which was stopped can be started again.

    Raises:
        ConfigurationError: they are not parts of the same run.
    """
    target = RunFolder(out)
    for number, source in enumerate(map(RunFolder, runs)):
        description = source.describe()
        sizes = description.pop("batch_sizes")
        if number and len({*sizes, *target.describe()["batch_sizes"]}) > 1:
            raise ConfigurationError(
                f"{source.path} was made with another batch size; merge runs of one batch size"
            )
        target.claim({name: part for name, part in description.items() if name != "format"}, sizes[0])
    for source in map(RunFolder, runs):
        _copy(source, target)
    return target


def _copy(source: RunFolder, target: RunFolder) -> None:
    there = {(each.benchmark, each.item, each.image, each.method) for each in target.samples()}
    for sample in source.samples():
        if (sample.benchmark, sample.item, sample.image, sample.method) in there:
            continue
        picture = target.picture_of(sample)
        if sample.file and not picture.exists():
            write_bytes_atomically(picture, source.picture_of(sample).read_bytes())
        target.add_samples("merged", [sample])
    for file in sorted(source.path.glob(f"scores/*/{DETECTOR_FILE}")):
        identity = parse_mapping(file.read_text(encoding="utf-8"), source=str(file))
        detector = str(identity.pop("name"))
        target.claim_scores(detector, identity)
        known = {score.key for score in target.scores(detector) if score.flagged is not None}
        target.add_scores(
            "merged", detector, [each for each in source.scores(detector) if each.key not in known]
        )
    _copy_measures(source, target)


def _copy_measures(source: RunFolder, target: RunFolder) -> None:
    """Measurements of pictures; distances of sets are those of parts, and are measured anew."""
    for file in sorted(source.path.glob(f"measures/*/{MEASURE_FILE}")):
        identity = parse_mapping(file.read_text(encoding="utf-8"), source=str(file))
        name = str(identity.pop("name"))
        found = [] if name == FID else source.measures.measurements(name)
        if not found:
            continue
        target.measures.claim(name, identity)
        there = target.measures.measurements(name)
        known = {(each.key, each.reference) for each in there if each.value is not None}
        target.measures.add(
            "merged", name, [each for each in found if (each.key, each.reference) not in known]
        )
