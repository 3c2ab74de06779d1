"""Stage 2 for side effects: LPIPS to the unguided picture, and the CLIP score to the prompt, of each picture that is shown.

A picture that cannot be read and a network that fails give a measurement with an error, never a number. What was measured stays
measured: a second start measures what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from sldcore.evaluation.pairing import UNGUIDED, shown, shown_pairs
from sldcore.evaluation.records import Measurement, Sample
from sldcore.evaluation.run_folder import RunFolder
from sldcore.evaluation.scoring import UNREADABLE, Progress, picture_of

BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class Measure:
    """A network that gives a number per picture.

    ``compute`` takes pictures, and for each the picture to compare it with (``paired``) or its prompt; it returns one number for each.
    """

    name: str
    version: str
    weights: str
    paired: bool
    compute: Callable[[Sequence[Image.Image], Sequence[Any]], Sequence[float]]

    @property
    def identity(self) -> Mapping[str, str]:
        """What tells its numbers from those of others."""
        return {"version": self.version, "weights": self.weights}


@dataclass(frozen=True, slots=True)
class _Task:
    """A picture, and the one that it is compared with."""

    sample: Sample
    reference: Sample | None

    @property
    def identity(self) -> tuple[str, str]:
        return self.sample.key, self.reference.key if self.reference else ""


def measure_samples(
    folder: RunFolder,
    measure: Measure,
    samples: Iterable[Sample],
    worker: str = "measures",
    retry_errors: bool = False,
    progress: Progress | None = None,
) -> None:
    """Measure what has not been measured yet.

    Args:
        folder: The run.
        measure: What is measured.
        samples: Those to look at. What is withheld or has errors is left out; so is, for a paired measure, what has no unguided picture
            yet, because another worker makes it.
        worker: Name of the journal.
        retry_errors: Measure again where it failed before.
        progress: Told after every batch.

    Raises:
        ConfigurationError: the folder has numbers of another version of the measure.
        OSError: numbers cannot be written.
    """
    folder.measures.claim(measure.name, measure.identity)
    before = folder.measures.measurements(measure.name)
    done = {(each.key, each.reference) for each in before if each.value is not None or not retry_errors}
    tasks = {task.identity: task for task in _tasks(folder, measure, samples)}
    missing = [task for identity, task in tasks.items() if identity not in done]
    settled = len(tasks) - len(missing)
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        folder.measures.add(worker, measure.name, _measured(folder, measure, batch))
        if progress is not None:
            progress(settled + start + len(batch), len(tasks))


def _tasks(folder: RunFolder, measure: Measure, samples: Iterable[Sample]) -> list[_Task]:
    if not measure.paired:
        return [_Task(sample, None) for sample in samples if shown(sample)]
    unguided = [sample for sample in folder.samples() if sample.method == UNGUIDED]
    guided = [sample for sample in samples if sample.method != UNGUIDED]
    return [_Task(sample, reference) for reference, sample in shown_pairs(unguided, guided)]


def _measured(folder: RunFolder, measure: Measure, batch: Sequence[_Task]) -> list[Measurement]:
    ready: list[tuple[_Task, Image.Image, Any]] = []
    found = []
    for task in batch:
        sample, reference = task.sample, task.reference
        if reference and sample.pixels and sample.pixels == reference.pixels:
            found.append(_measurement(measure, task, 0.0))
            continue
        try:
            picture = picture_of(folder, sample)
            ready.append((task, picture, picture_of(folder, reference) if reference else sample.prompt))
        except UNREADABLE as problem:
            found.append(_measurement(measure, task, None, f"the picture cannot be read: {problem}"))
    return found + _computed(measure, ready)


def _computed(measure: Measure, ready: Sequence[tuple[_Task, Image.Image, Any]]) -> list[Measurement]:
    """Numbers of pictures; if the network fails on several at once, one by one, so that each bears its own error."""
    if not ready:
        return []
    try:
        values = [
            float(value)
            for value in measure.compute([each[1] for each in ready], [each[2] for each in ready])
        ]
        if len(values) != len(ready) or not all(map(math.isfinite, values)):
            raise ValueError(
                f"it gave {len(values)} numbers for {len(ready)} pictures, or some that are not finite"
            )
    except Exception as problem:
        if len(ready) > 1:
            return [found for each in ready for found in _computed(measure, [each])]
        return [_measurement(measure, ready[0][0], None, f"{type(problem).__name__}: {problem}")]
    return [_measurement(measure, task, value) for (task, *_), value in zip(ready, values, strict=True)]


def _measurement(measure: Measure, task: _Task, value: float | None, error: str = "") -> Measurement:
    key, reference = task.identity
    return Measurement(key, measure.name, value, measure.version, measure.weights, reference, error[:1000])
