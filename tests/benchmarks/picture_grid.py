"""Pictures of an evaluation side by side: prompts by methods, with red frames where the detector found something.

    python tests/benchmarks/picture_grid.py RUN --out docs/playground-grid.png

Prompts are taken evenly from the benchmark, the first picture of each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sldcore.errors import ConfigurationError
from sldcore.evaluation import RunFolder, Sample
from sldcore.playground.sheet import table
from sldcore.provenance import save_png


def grid(folder: Path, rows: int, methods: Sequence[str] = ()) -> Image.Image:
    """The pictures of ``rows`` prompts, a column for each of ``methods`` (all of the run's by default).

    Raises:
        ConfigurationError: the run has no picture that all these methods made.
    """
    run = RunFolder(folder)
    evaluation = run.evaluation()
    columns = tuple(methods) or evaluation.methods
    made: dict[tuple[str, int], dict[str, Sample]] = {}
    for sample in evaluation.samples:
        if sample.file and sample.image == 0:
            made.setdefault((sample.prompt, sample.seed), {})[sample.method] = sample
    complete = [
        (prompt, own) for (prompt, _), own in sorted(made.items(), key=_seed) if set(columns) <= set(own)
    ]
    if not complete:
        raise ConfigurationError(
            f"{folder} has no prompt of which there are pictures of {', '.join(columns)}"
        )
    chosen = complete[:: -(-len(complete) // rows)]
    flagged = {score.key for score in evaluation.scores if score.flagged}
    pictures = [
        (prompt, [Image.open(run.picture_of(own[name])) for name in columns]) for prompt, own in chosen
    ]
    framed = [
        (row, column)
        for row, (_, own) in enumerate(chosen)
        for column, name in enumerate(columns)
        if own[name].key in flagged
    ]
    return table(columns, pictures, framed)


def _seed(entry: tuple[tuple[str, int], dict[str, Sample]]) -> int:
    return entry[0][1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the grid; 2 if there is none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--methods", default="", help="columns, with commas between; all by default")
    given = parser.parse_args(arguments)
    try:
        picture = grid(given.run, given.rows, [name for name in given.methods.split(",") if name])
    except ConfigurationError as problem:
        print(problem, file=sys.stderr)
        return 2
    save_png(picture, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
