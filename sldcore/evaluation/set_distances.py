"""FID and KID of a run: the pictures of each method against those without guidance, or against a folder of pictures.

Only pictures count that are shown, and of pairs only those of which both are. A set is known by the keys of its pictures, so that figures
of a run that has grown since are measured anew, and those of a run that has not are left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sldcore.errors import ConfigurationError, ModelError
from sldcore.evaluation.estimates import Numbers
from sldcore.evaluation.fidelity import frechet_distance, kernel_distance
from sldcore.evaluation.measure_folder import FID
from sldcore.evaluation.pairing import UNGUIDED, shown, shown_pairs
from sldcore.evaluation.records import Sample, SetDistance
from sldcore.evaluation.run_folder import RunFolder
from sldcore.evaluation.scoring import UNREADABLE, picture_of

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
_BATCH: Final = 64

Progress = Callable[[int, int], None]
"""Told how many methods are done, and of how many."""


class Extractor(Protocol):
    """What turns pictures into features; see :class:`sldcore.evaluation.fidelity.Inception`."""

    @property
    def version(self) -> str:
        """Of the implementation."""
        ...

    def features(self, pictures: Iterable[Any]) -> Numbers:
        """[N, D]."""
        ...


@dataclass(frozen=True, slots=True)
class References:
    """A folder of pictures to compare with; ``label`` is its name with a hash of its pictures."""

    label: str
    files: tuple[Path, ...]


def references_in(folder: Path) -> References:
    """The pictures in a folder and below it.

    Raises:
        ConfigurationError: there are fewer than two, or they cannot be read.
    """
    try:
        files = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        digest = sha256()
        for path in files:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\n")
            digest.update(sha256(path.read_bytes()).digest())
    except OSError as problem:
        raise ConfigurationError(
            f"cannot read the reference pictures in {folder}: {problem.strerror or problem}"
        ) from None
    if len(files) < 2:
        raise ConfigurationError(
            f"{folder} holds {len(files)} reference pictures ({', '.join(SUFFIXES)}); FID and KID need at least 2, and thousands to say much"
        )
    return References(f"{folder.resolve().name} ({digest.hexdigest()[:12]})", tuple(files))


@dataclass(frozen=True, slots=True)
class Sets:
    """What is compared: samples of one method on one benchmark, and those without guidance; empty with a folder of references."""

    benchmark: str
    method: str
    references: str
    samples: tuple[Sample, ...]
    unguided: tuple[Sample, ...]

    @property
    def compared(self) -> str:
        """Hash of both sets."""
        keys = [sorted(sample.key for sample in side) for side in (self.samples, self.unguided)]
        return sha256(
            "\n\n".join([self.references, *("\n".join(side) for side in keys)]).encode()
        ).hexdigest()


def sets_of(samples: Iterable[Sample], references: str) -> Iterator[Sets]:
    """The sets of a run that are compared with ``off``, or with the folder of this label; benchmark by benchmark."""
    cells: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        cells[sample.benchmark][sample.method].append(sample)
    for benchmark, methods in cells.items():
        for method, mine in methods.items():
            if references != UNGUIDED:
                yield Sets(benchmark, method, references, tuple(filter(shown, mine)), ())
            elif method != UNGUIDED:
                both = list(shown_pairs(methods.get(UNGUIDED, ()), mine))
                yield Sets(benchmark, method, UNGUIDED, tuple(b for _, b in both), tuple(a for a, _ in both))


def measure_sets(
    folder: RunFolder,
    extractor: Extractor,
    weights: str,
    references: References | None = None,
    worker: str = "measures",
    retry_errors: bool = False,
    progress: Progress | None = None,
) -> None:
    """Measure FID and KID of every method whose pictures are other than when it was last measured.

    Args:
        folder: The run.
        extractor: FID's network.
        weights: Hash of its weights.
        references: What is compared with; by default the pictures of ``off`` of the same prompts and seeds.
        worker: Name of the journal.
        retry_errors: Measure sets again of which some pictures could not be read.
        progress: Told after every method.

    Raises:
        ConfigurationError: the folder has figures of another version, or features make no sense.
        OSError: figures cannot be written.
    """
    folder.measures.claim(FID, {"version": extractor.version, "weights": weights})
    done = {
        (each.benchmark, each.method, each.compared)
        for each in folder.measures.distances()
        if not (retry_errors and each.unreadable)
    }
    label = references.label if references else UNGUIDED
    asked = list(sets_of(folder.evaluation().samples, label))
    missing = [sets for sets in asked if (sets.benchmark, sets.method, sets.compared) not in done]
    if not missing:
        return
    measured = _Measured(folder, extractor, weights)
    theirs = measured.of_files(references.files) if references else None
    for number, sets in enumerate(missing, 1):
        folder.measures.add(worker, FID, [measured.distance(sets, theirs)])
        if progress is not None:
            progress(len(asked) - len(missing) + number, len(asked))


class _Measured:
    """Features of a run's pictures; those without guidance are kept for the methods of their benchmark."""

    def __init__(self, folder: RunFolder, extractor: Extractor, weights: str) -> None:
        self._folder, self._extractor, self._weights = folder, extractor, weights
        self._benchmark = ""
        self._unguided: dict[str, NDArray[np.float32] | None] = {}

    def of_files(self, files: Sequence[Path]) -> list[NDArray[np.float32] | None]:
        """A row per file; None where it cannot be read."""
        return self._rows(files, _opened)

    def distance(self, sets: Sets, theirs: list[NDArray[np.float32] | None] | None) -> SetDistance:
        """Both distances, with what could not be read left out and counted."""
        mine = self._rows(sets.samples, lambda sample: picture_of(self._folder, sample))
        others = self._of_unguided(sets) if theirs is None else theirs
        if theirs is None:  # of a pair both or none
            mine, others = (
                [
                    row if a is not None and b is not None else None
                    for row, a, b in zip(side, mine, others, strict=True)
                ]
                for side in (mine, others)
            )
        a, b = ([row for row in side if row is not None] for side in (mine, others))
        fid = kid = sd = None
        if min(len(a), len(b)) > 1:
            first, second = np.stack(a).astype(np.float64), np.stack(b).astype(np.float64)
            fid, (kid, sd) = frechet_distance(first, second), kernel_distance(first, second)
        return SetDistance(
            sets.benchmark, sets.method, sets.references, sets.compared, len(a), len(b),
            len(mine) - len(a) + len(others) - len(b), fid, kid, sd, self._extractor.version, self._weights,
        )  # fmt: skip

    def _of_unguided(self, sets: Sets) -> list[NDArray[np.float32] | None]:
        if self._benchmark != sets.benchmark:
            self._benchmark, self._unguided = sets.benchmark, {}
        new = {sample.key: sample for sample in sets.unguided if sample.key not in self._unguided}
        rows = self._rows(list(new.values()), lambda sample: picture_of(self._folder, sample))
        self._unguided.update(zip(new, rows, strict=True))
        return [self._unguided[sample.key] for sample in sets.unguided]

    def _rows(
        self, sources: Sequence[Any], opened: Callable[[Any], Image.Image]
    ) -> list[NDArray[np.float32] | None]:
        """A row of features per source, a batch of pictures at a time; None where there is no picture."""
        rows: list[NDArray[np.float32] | None] = []
        left = iter(sources)
        while some := list(islice(left, _BATCH)):
            pictures = [_or_none(opened, source) for source in some]
            found = iter(self._features([each for each in pictures if each is not None]))
            rows += [None if each is None else next(found) for each in pictures]
        return rows

    def _features(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        try:
            return self._extractor.features(pictures).astype(np.float32)
        except RuntimeError as problem:
            reason = " ".join(str(problem).split())[:200]
            raise ModelError(
                f"FID's network failed on {len(pictures)} pictures ({reason}); try another device. What was measured is kept"
            ) from problem


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _or_none(opened: Callable[[Any], Image.Image], source: Any) -> Image.Image | None:
    try:
        return opened(source)
    except UNREADABLE:
        return None
