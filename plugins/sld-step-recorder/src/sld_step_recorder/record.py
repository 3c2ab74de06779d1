"""A record on disk: a folder with ``record.json``, ``statistics.csv`` and one ``sample-N.png`` for each picture of the run.

A record appears in one piece: its files are written into a hidden folder that then gets its name.
"""

from __future__ import annotations

import csv
import errno
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import isfinite
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sld_step_recorder.sheet import contact_sheet
from sldcore.errors import PluginError
from sldcore.types import Step

MEASURES: Final = ("norm", "mean", "std")
_TAKEN: Final = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Record:
    """One run of T steps over B samples, on the host.

    ``statistics`` [T, Q, 3, B]: norm, mean and standard deviation of each of the Q ``quantities``. ``previews``
    [S, P, B, 3, h, w]: pictures of the P quantities in ``pictured`` at the S steps in ``preview_steps``, not scaled.
    """

    recorder: str
    steps: tuple[Step, ...]
    quantities: tuple[str, ...]
    statistics: NDArray[np.float32]
    pictured: tuple[str, ...]
    previews: NDArray[np.float32] | None
    preview_steps: tuple[int, ...]

    @property
    def samples(self) -> int:
        """How many pictures the run made, B."""
        return int(self.statistics.shape[3])


def check_folder(folder: str) -> None:
    """Make the folder, and see whether something can be written there.

    Raises:
        PluginError: it cannot.
    """
    try:
        probe = _hidden(Path(folder))
        probe.rmdir()
    except OSError as problem:
        raise _cannot_write(folder, problem) from None


def write_record(folder: str, record: Record) -> Path:
    """Write ``record`` into a new folder ``run-0001``, ``run-0002``, ... of ``folder``, and return its path.

    Raises:
        PluginError: it cannot be written.
    """
    try:
        hidden = _hidden(Path(folder))
        try:
            _write_files(hidden, record)
            return _publish(hidden, Path(folder))
        finally:
            rmtree(hidden, ignore_errors=True)  # is not there any more if all went well
    except OSError as problem:
        raise _cannot_write(folder, problem) from None


def _hidden(folder: Path) -> Path:
    hidden = folder / f".record-{token_hex(4)}"
    hidden.mkdir(parents=True)
    return hidden


def _publish(hidden: Path, folder: Path) -> Path:
    names = [path.name.removeprefix("run-") for path in folder.glob("run-*")]
    number = max((int(name) for name in names if name.isdecimal()), default=0)
    while True:
        number += 1
        try:
            return hidden.rename(folder / f"run-{number:04}")
        except OSError as problem:  # another run took this number first
            if problem.errno not in _TAKEN:
                raise


def _cannot_write(folder: str, problem: OSError) -> PluginError:
    return PluginError(
        f"step-recorder cannot write to '{folder}': {problem.strerror or problem}; give a folder that can be written as "
        f"option 'folder', or take step-recorder out of the policy's step_hooks"
    )


def _write_files(folder: Path, record: Record) -> None:
    (folder / "record.json").write_text(
        json.dumps(_as_json(record), indent=1, allow_nan=False) + "\n", "utf-8"
    )
    (folder / "statistics.csv").write_text(_as_csv(record), "utf-8", newline="")
    if record.previews is not None:
        for sample in range(record.samples):
            sheet = contact_sheet(record.previews[:, :, sample], record.pictured, record.preview_steps)
            sheet.save(folder / f"sample-{sample}.png")


def _as_json(record: Record) -> dict[str, Any]:
    return {
        "format": 1,
        "recorder": record.recorder,
        "samples": record.samples,
        "steps": [
            {"index": step.index, "timestep": step.timestep, "noise_level": step.noise_level}
            for step in record.steps
        ],
        "previews": {"steps": list(record.preview_steps), "quantities": list(record.pictured)},
        "statistics": {  # quantity, measure, step, sample
            quantity: {
                measure: [[_number(value) for value in row] for row in record.statistics[:, q, m]]
                for m, measure in enumerate(MEASURES)
            }
            for q, quantity in enumerate(record.quantities)
        },
    }


def _as_csv(record: Record) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "timestep", "noise_level", "sample", "quantity", *MEASURES))
    writer.writerows(_rows(record))
    return text.getvalue()


def _rows(record: Record) -> Iterator[tuple[object, ...]]:
    for (t, step), sample, (q, quantity) in product(
        enumerate(record.steps), range(record.samples), enumerate(record.quantities)
    ):
        values = (float(value) for value in record.statistics[t, q, :, sample])
        yield (step.index, step.timestep, step.noise_level, sample, quantity, *values)


def _number(value: float) -> float | None:
    """A number that JSON knows: NaN and infinity become null."""
    return float(value) if isfinite(value) else None
