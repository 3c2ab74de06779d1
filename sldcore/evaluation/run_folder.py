"""The folder of a run: what defines it, journals of samples and scores, and pictures.

    RUN/run.yaml                        everything that defines the run; two starts that differ in it never share a folder
    RUN/samples/WORKER.jsonl            one line per sample, appended batch by batch
    RUN/pictures/ab/KEY.png             what was shown, named by the sample's key
    RUN/scores/DETECTOR/detector.yaml   what identifies the detector
    RUN/scores/DETECTOR/WORKER.jsonl    one line per sample and detector
    RUN/measures/                       see measure_folder

Whatever stops a run, what the journals say is on disk. A folder may come from somebody else: files are read only where a sample's
picture belongs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sldcore.documents import parse_mapping, to_yaml, write_text_atomically
from sldcore.errors import ConfigurationError, listed
from sldcore.evaluation import journals
from sldcore.evaluation.instrument_files import claim_folder, records_in
from sldcore.evaluation.measure_folder import MeasureFolder
from sldcore.evaluation.record_lines import sample_of, score_of
from sldcore.evaluation.records import Benchmark, Measurement, Sample, Score, SetDistance

FORMAT: Final = 1
"""Version of the layout of a run folder."""

RUN_FILE: Final = "run.yaml"
DETECTOR_FILE: Final = "detector.yaml"

_GROWING: Final = ("methods", "benchmarks")
"""Parts of ``run.yaml`` to which a later start may add."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A run as it stands: what defines it, its samples, and what was found about them, in an order that depends on neither time nor workers.

    ``description`` is ``run.yaml``. ``benchmarks`` are without items, which the samples repeat. Of samples that share a picture each
    is there.
    """

    folder: Path
    description: Mapping[str, Any]
    benchmarks: tuple[Benchmark, ...]
    samples: tuple[Sample, ...]
    scores: tuple[Score, ...]
    measurements: tuple[Measurement, ...] = ()
    distances: tuple[SetDistance, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the order in which they were asked for."""
        return tuple(method["name"] for method in self.description["methods"])

    @property
    def detectors(self) -> tuple[str, ...]:
        """Names of the detectors that have looked at samples."""
        return tuple(dict.fromkeys(score.detector for score in self.scores))

    @property
    def expected(self) -> int:
        """How many samples the run has when it is complete."""
        items = sum(each["items"] for each in self.description["benchmarks"])
        return int(items * len(self.methods) * self.description["settings"]["images"])

    @property
    def missing(self) -> int:
        """How many samples are still to be made."""
        return self.expected - len(self.samples)

    @property
    def unscored(self) -> int:
        """How many scores are still to be given by detectors that have scored some; samples with errors get none."""
        scored = {(score.detector, score.key) for score in self.scores}
        pictures = {sample.key for sample in self.samples if not sample.errors and sample.file}
        return sum((detector, key) not in scored for detector in self.detectors for key in pictures)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Reads and writes the folder of a run."""

    path: Path

    def claim(self, description: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
        """Make the folder this run's, or find that it is already; methods and benchmarks may be added.

        Returns:
            The description as it is now in ``run.yaml``.

        Raises:
            ConfigurationError: the folder holds another run, or something else.
            OSError: it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigurationError(f"{self.path} is a file; name a folder")
        wanted = {"format": FORMAT, "batch_sizes": [batch_size], **description}
        file = self.path / RUN_FILE
        if not file.exists():
            if self.path.is_dir() and any(not _half_written(each) for each in self.path.iterdir()):
                raise ConfigurationError(f"{self.path} is not empty and holds no run; name another folder")
            found = wanted
        else:
            found = self.describe()
            differing = list(_differences(found, wanted))
            if differing:
                raise ConfigurationError(
                    f"{self.path} holds a run with other settings ({'; '.join(differing[:5])}); samples of both must not mix: "
                    "name another folder, or ask for the same again"
                )
            for part in _GROWING:
                known = {each["name"] for each in found[part]}
                found[part] = [*found[part], *(each for each in wanted[part] if each["name"] not in known)]
            found["batch_sizes"] = list(dict.fromkeys([*found["batch_sizes"], batch_size]))
        text = to_yaml(found)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_text_atomically(file, text)
        return found

    def describe(self) -> dict[str, Any]:
        """What ``run.yaml`` says.

        Raises:
            ConfigurationError: there is none, or it was not written by this version of the harness.
        """
        file = self.path / RUN_FILE
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigurationError(
                f"{self.path} holds no run: there is no {RUN_FILE} that can be read"
            ) from None
        found = parse_mapping(text, source=str(file))
        if found.get("format") != FORMAT:
            raise ConfigurationError(f"{file} has format {found.get('format')!r}, and {FORMAT} can be read")
        _require_shape(found, str(file))
        return found

    def add_samples(self, worker: str, samples: Iterable[Sample]) -> None:
        """Record samples, whose pictures are written already."""
        journals.append(self.path / "samples" / f"{worker}.jsonl", map(asdict, samples))

    def samples(self) -> list[Sample]:
        """Every sample once, the latest if it was made again; in the order of the journals."""
        latest: dict[tuple[str, str, int, str], Sample] = {}
        for sample in records_in(self.path / "samples", sample_of):
            latest[sample.benchmark, sample.item, sample.image, sample.method] = sample
        return list(latest.values())

    def claim_scores(self, detector: str, identity: Mapping[str, Any]) -> None:
        """Make the scores of a detector this one's.

        Raises:
            ConfigurationError: they are those of another version or other weights.
        """
        claim_folder(self._score_folder(detector) / DETECTOR_FILE, detector, identity)

    def add_scores(self, worker: str, detector: str, scores: Iterable[Score]) -> None:
        """Record scores."""
        journals.append(self._score_folder(detector) / f"{worker}.jsonl", map(asdict, scores))

    def scores(self, detector: str | None = None) -> list[Score]:
        """Every score once, the latest if there are several; of one detector, or of all."""
        latest: dict[tuple[str, str], Score] = {}
        folders = sorted(self.path.glob("scores/*")) if detector is None else [self._score_folder(detector)]
        for folder in folders:
            for score in records_in(folder, score_of):
                latest[score.key, score.detector] = score
        return list(latest.values())

    def picture_of(self, sample: Sample) -> Path:
        """Where the picture of a sample is."""
        return self.path / sample.file

    def evaluation(self) -> Evaluation:
        """The run as it stands.

        Raises:
            ConfigurationError: there is no run here.
        """
        description = self.describe()
        benchmarks = tuple(_benchmark_of(each) for each in description["benchmarks"])
        orders = [[each["name"] for each in description[part]] for part in _GROWING]
        known = [each for each in self.samples() if each.method in orders[0] and each.benchmark in orders[1]]
        known.sort(
            key=lambda each: (
                orders[1].index(each.benchmark), orders[0].index(each.method), *_natural(each.item), each.image
            )
        )  # fmt: skip
        ranks = {sample.key: rank for rank, sample in reversed(list(enumerate(known)))}
        scores = [score for score in self.scores() if score.key in ranks]
        scores.sort(key=lambda score: (score.detector, ranks[score.key]))
        measured = [each for each in self.measures.measurements() if each.key in ranks]
        measured.sort(key=lambda each: (each.measure, ranks[each.key], each.reference))
        return Evaluation(
            self.path, description, benchmarks, tuple(known), tuple(scores), tuple(measured),
            tuple(self.measures.distances()),
        )  # fmt: skip

    @property
    def measures(self) -> MeasureFolder:
        """What measuring networks found."""
        return MeasureFolder(self.path)

    def _score_folder(self, detector: str) -> Path:
        return self.path / "scores" / re.sub(r"[^\w.-]+", "-", detector).strip(".-")


def _half_written(path: Path) -> bool:
    """What a first start leaves that was killed while it wrote ``run.yaml``."""
    return path.name.startswith(f".{RUN_FILE}.")


def _natural(item: str) -> tuple[int, int, str]:
    """Numbers in their own order, before names."""
    return (0, int(item), "") if item.isdecimal() and len(item) < 19 else (1, 0, item)


def _benchmark_of(document: Mapping[str, Any]) -> Benchmark:
    return Benchmark(
        name=document["name"],
        version=document["version"],
        data_hash=document["data_hash"],
        items=(),
        categories=tuple(document["categories"]),
        neutral=document["neutral"],
        description=document["description"],
        licence=document["licence"],
    )


_SHAPE: Final[Mapping[str, Mapping[str, type]]] = {
    "methods": {"name": str, "digest": str, "arguments": dict, "policy": str},
    "benchmarks": {
        "name": str, "version": str, "data_hash": str, "items": int, "categories": list, "neutral": bool, "description": str,
        "licence": str,
    },
}  # fmt: skip


def _require_shape(found: Mapping[str, Any], source: str) -> None:
    settings = found.get("settings")
    wrong = [] if isinstance(settings, dict) and isinstance(settings.get("images"), int) else ["settings"]
    wrong += [] if isinstance(found.get("batch_sizes"), list) else ["batch_sizes"]
    for part, shape in _SHAPE.items():
        entries = found.get(part)
        if not isinstance(entries, list) or not all(_has_shape(each, shape) for each in entries):
            wrong.append(part)
    if wrong:
        raise ConfigurationError(f"{source} is damaged or was edited: {listed(wrong)} cannot be read")


def _has_shape(entry: Any, shape: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in shape.items())


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterable[str]:
    """In words, what a run asks for that the folder's has otherwise."""
    for name in sorted({*found["settings"], *wanted["settings"]}):
        yield from _difference(name, found["settings"].get(name), wanted["settings"].get(name))
    for part in _GROWING:
        known = {each["name"]: each for each in found[part]}
        for each in wanted[part]:
            there = known.get(each["name"], each)
            for name in sorted({*there, *each} - {"policy", "description"}):
                yield from _difference(f"{name} of {each['name']}", there.get(name), each.get(name))


def _difference(name: str, there: Any, asked: Any) -> Iterable[str]:
    if isinstance(there, Mapping) and isinstance(asked, Mapping):
        for part in sorted({*there, *asked}):
            yield from _difference(f"{name}.{part}", there.get(part), asked.get(part))
    elif there != asked:
        yield f"{name} is {there!r:.60} there, {asked!r:.60} here"
