"""Where a run keeps what measuring networks found.

RUN/measures/lpips/measure.yaml     version and weights of the network
RUN/measures/lpips/WORKER.jsonl     one line per pair of pictures; of clip, one per picture
RUN/measures/fid/WORKER.jsonl       one line per benchmark, method and set of references
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sldcore.evaluation import journals
from sldcore.evaluation.instrument_files import claim_folder, records_in
from sldcore.evaluation.record_lines import distance_of, measurement_of
from sldcore.evaluation.records import Measurement, SetDistance

MEASURE_FILE: Final = "measure.yaml"
LPIPS: Final = "lpips"
CLIP: Final = "clip"
FID: Final = "fid"


@dataclass(frozen=True, slots=True)
class MeasureFolder:
    """Reads and writes the measures of the run in the folder ``path``."""

    path: Path

    def claim(self, name: str, identity: Mapping[str, Any]) -> None:
        """Make the folder of a measure this one's.

        Raises:
            ConfigurationError: it holds figures of another version or other weights.
            OSError: it cannot be written.
        """
        claim_folder(self._folder(name) / MEASURE_FILE, name, identity)

    def add(self, worker: str, name: str, found: Iterable[Measurement | SetDistance]) -> None:
        """Record what a measure found.

        Raises:
            OSError: it cannot be written.
        """
        journals.append(self._folder(name) / f"{worker}.jsonl", map(asdict, found))

    def measurements(self, *names: str) -> list[Measurement]:
        """Every measurement of a picture or pair once, the latest if there are several; of these measures, or of all."""
        latest: dict[tuple[str, str, str], Measurement] = {}
        for name in names or (LPIPS, CLIP):
            for each in records_in(self._folder(name), measurement_of):
                latest[each.measure, each.key, each.reference] = each
        return list(latest.values())

    def distances(self) -> list[SetDistance]:
        """Every distance of sets, also of sets that have changed since; the latest if one was measured again."""
        latest: dict[tuple[str, str, str, str], SetDistance] = {}
        for each in records_in(self._folder(FID), distance_of):
            latest[each.benchmark, each.method, each.references, each.compared] = each
        return list(latest.values())

    def _folder(self, name: str) -> Path:
        return self.path / "measures" / name
