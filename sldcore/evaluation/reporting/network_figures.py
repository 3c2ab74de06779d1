"""Side effects of a method as networks see them: LPIPS, CLIP score and its change, FID and KID."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sldcore.evaluation.estimates import Estimate, mean
from sldcore.evaluation.measure_folder import CLIP, LPIPS
from sldcore.evaluation.paired import paired_difference
from sldcore.evaluation.pairing import shown, shown_pairs
from sldcore.evaluation.records import Measurement, Sample, SetDistance
from sldcore.evaluation.reporting.evaluated import Evaluated
from sldcore.evaluation.set_distances import sets_of


@dataclass(frozen=True, slots=True)
class Lack:
    """Pictures of which a measure has no number: its network failed, or has not looked yet."""

    failed: int
    unmeasured: int


@dataclass(frozen=True, slots=True)
class NetworkFigures:
    """What networks found of one method on one benchmark; None and empty where none measured it.

    ``lpips`` is the mean distance to the unguided pictures over pairs that are both shown, ``clip`` the mean CLIP score of shown
    pictures, ``clip_change`` that of the method less that of the baseline over pairs that are both shown. ``distances`` are FID and
    KID. ``lacking`` says per measure of how many pictures there is no number, ``outdated`` to which references FID and KID were
    measured of pictures that have changed since.
    """

    lpips: Estimate | None = None
    clip: Estimate | None = None
    clip_change: Estimate | None = None
    distances: tuple[SetDistance, ...] = ()
    lacking: Mapping[str, Lack] = field(default_factory=dict)
    outdated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """What networks found in a run, for look-up by measure, picture and reference, and by benchmark and method."""

    values: Mapping[tuple[str, str, str], Measurement]
    distances: Mapping[tuple[str, str], tuple[SetDistance, ...]]
    outdated: Mapping[tuple[str, str], tuple[str, ...]]
    measures: frozenset[str]

    @classmethod
    def of(cls, evaluation: Evaluated) -> Measured:
        """Of a run; distances of sets that have changed since are told apart."""
        values = {(each.measure, each.key, each.reference): each for each in evaluation.measurements}
        known = {(each.benchmark, each.method, each.compared): each for each in evaluation.distances}
        measured = {(each.benchmark, each.method, each.references) for each in evaluation.distances}
        current: dict[tuple[str, str], tuple[SetDistance, ...]] = {}
        outdated: dict[tuple[str, str], tuple[str, ...]] = {}
        for label in dict.fromkeys(each.references for each in evaluation.distances):
            for sets in sets_of(evaluation.samples, label):
                where = (sets.benchmark, sets.method)
                if found := known.get((*where, sets.compared)):
                    current[where] = (*current.get(where, ()), found)
                elif (*where, label) in measured:
                    outdated[where] = (*outdated.get(where, ()), label)
        return cls(values, current, outdated, frozenset(measure for measure, *_ in values))

    def value(self, measure: str, sample: Sample, reference: Sample | None = None) -> float:
        """A number; NaN if there is none."""
        found = self.values.get((measure, sample.key, reference.key if reference else ""))
        return math.nan if found is None or found.value is None else found.value


def network_figures(
    samples: Sequence[Sample], baseline: Sequence[Sample], measured: Measured
) -> NetworkFigures:
    """Figures of the samples of a method; ``baseline`` are those of the method that it is compared with."""
    if not samples:
        return NetworkFigures()
    own = samples[0].method
    both = [] if baseline and baseline[0].method == own else list(shown_pairs(baseline, samples))
    prompts = [sample.prompt for _, sample in both]
    lpips = clip = change = None
    lacking: dict[str, Lack] = {}
    if LPIPS in measured.measures and both:
        lpips = mean([measured.value(LPIPS, b, a) for a, b in both], prompts)
        lacking[LPIPS] = _lack(measured, [(LPIPS, b.key, a.key) for a, b in both])
    seen = [sample for sample in samples if shown(sample)]
    if CLIP in measured.measures and seen:
        clip = mean([measured.value(CLIP, sample) for sample in seen], [sample.prompt for sample in seen])
        lacking[CLIP] = _lack(measured, [(CLIP, sample.key, "") for sample in seen])
    if CLIP in measured.measures and both:
        before, after = ([measured.value(CLIP, pair[i]) for pair in both] for i in (0, 1))
        change = paired_difference(after, before, prompts)
    where = (samples[0].benchmark, own)
    return NetworkFigures(
        lpips, clip, change, measured.distances.get(where, ()),
        {name: each for name, each in lacking.items() if each.failed or each.unmeasured},
        measured.outdated.get(where, ()),
    )  # fmt: skip


def _lack(measured: Measured, asked: Sequence[tuple[str, str, str]]) -> Lack:
    found = [measured.values.get(each) for each in asked]
    return Lack(
        sum(each is not None and each.value is None for each in found), sum(each is None for each in found)
    )
