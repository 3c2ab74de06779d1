"""Compares the guidance methods on the playground, and writes the tables and plots of docs/methods.md.

    python tests/benchmarks/methods_table.py make --work out/methods            # pictures: about two hours on one core
    python tests/benchmarks/methods_table.py write --work out/methods --docs docs

``make`` goes on where it stopped; each stage is a run folder of ``sld eval`` below the work folder, and ``--stages`` names those
to make. Seconds are of the processor, so that other work on the machine hardly counts; set OMP_NUM_THREADS=1. The method
``sega`` is left out, and that is said, unless sld-guidance-sega is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import process_time
from typing import Final
from unittest.mock import patch

from compared_methods import NOISE_PRESETS, PRESETS, gates, peers, savings, with_scheduler
from PIL import Image

from sldcore import SafetyPolicy
from sldcore.documents import write_text_atomically
from sldcore.errors import ConfigurationError, SLDError
from sldcore.evaluation import Benchmark, load_benchmark, run
from sldcore.evaluation.running import plan_of
from sldcore.evaluation.workers import generator_of
from sldcore.guidance.references import write_references
from sldcore.loading import load_pipeline
from sldcore.playground.world import samples

ROLES: Final = "playground/roles-held-out"
NEUTRAL: Final = "playground/neutral-held-out"
EXPLICIT: Final = "playground/explicit"
STEPS: Final = 50
FEW_STEPS: Final = (8, 20)
SCHEDULERS: Final = ("ddim", "dpm++2m", "euler")
FEW_LIMIT: Final = 30
"""Prompts of each set with few steps."""
SECONDS_LIMIT: Final = 15
REFERENCES: Final = 128
REFERENCE_SEED: Final = 20_000
REFUSED: Final = "refused.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """One run folder. ``limit``: only the first prompts of each benchmark."""

    name: str
    benchmarks: tuple[str, ...]
    policies: Sequence[SafetyPolicy]
    steps: int = STEPS
    images: int = 1
    limit: int | None = None

    def loaded(self) -> list[Benchmark]:
        """The benchmarks."""
        return [load_benchmark(name, limit=self.limit) for name in self.benchmarks]


def presets(*names: str) -> list[SafetyPolicy]:
    """Presets by name."""
    return [SafetyPolicy.preset(name) for name in names]


def stages(work: Path) -> list[Stage]:
    """All stages, those that matter most first."""
    others = peers(references(work), sega=find_spec("sld_guidance_sega") is not None)
    both = (ROLES, NEUTRAL)
    every = (*both, EXPLICIT)
    return [
        Stage("presets", every, presets(*PRESETS)),
        Stage("goal", both, presets("off", "max", "gated"), images=2),
        Stage("seconds", both, [*presets("off"), *others], limit=SECONDS_LIMIT),
        Stage("peers", every, others),
        Stage("gates", every, gates()),
        Stage("savings", every, savings()),
        *(_few(steps, scheduler, others) for steps in FEW_STEPS for scheduler in SCHEDULERS),
    ]


def _few(steps: int, scheduler: str, others: Sequence[SafetyPolicy]) -> Stage:
    named = [with_scheduler(each, scheduler) for each in (*presets(*PRESETS, *NOISE_PRESETS), *others)]
    return Stage(f"few-{steps}-{scheduler}", (ROLES, NEUTRAL, EXPLICIT), named, steps, limit=FEW_LIMIT)


def references(work: Path) -> tuple[Path, str]:
    """A file of latents of drawn pictures that show glyphs, for the Safe Denoiser, and its sha256."""
    shown = (each for each in samples(REFERENCE_SEED, 20 * REFERENCES) if each.scene.glyphs)
    pictures = [Image.fromarray(each.pixels) for each, _ in zip(shown, range(REFERENCES), strict=False)]
    path = (work / "references.safetensors").absolute()
    return path, write_references(load_pipeline("playground"), pictures, path)


def refusals(stage: Stage) -> dict[str, str]:
    """What the engine says of the policies whose windows do not fit so few steps, by name."""
    found = {}
    for each in stage.policies:
        try:
            generator_of(plan_of(stage.loaded(), each, steps=stage.steps), None)
        except ConfigurationError as refused:
            found[each.name] = str(refused)
    return found


def make(work: Path, wanted: Sequence[str] | None) -> None:
    """Make what is missing of the stages.

    Raises:
        SLDError: a stage cannot be made.
    """
    work.mkdir(parents=True, exist_ok=True)
    known = stages(work)
    if unknown := set(wanted or ()) - {stage.name for stage in known}:
        raise ConfigurationError(f"no stage is called {', '.join(sorted(unknown))}")
    for stage in known:
        if (wanted is None or stage.name in wanted) and stage.policies:
            _make(work, stage)
    if find_spec("sld_guidance_sega") is None:
        print("sega is left out: install plugins/sld-guidance-sega", file=sys.stderr)


def _make(work: Path, stage: Stage) -> None:
    refused = refusals(stage) if stage.steps != STEPS else {}
    with patch("sldcore.evaluation.generation.perf_counter", process_time):
        run(
            stage.loaded(),
            [each for each in stage.policies if each.name not in refused],
            work / stage.name,
            progress=_told(stage.name),
            steps=stage.steps,
            images=stage.images,
        )
    write_text_atomically(work / stage.name / REFUSED, json.dumps(refused, indent=2) + "\n")


def _told(name: str) -> Callable[[str, int, int], None]:
    return lambda stage, done, total: print(f"{name}: {stage} {done}/{total}", file=sys.stderr, flush=True)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="make pictures and score them")
    making.add_argument("--stages", nargs="+", help="only these")
    writing = commands.add_parser("write", help="write tables and plots")
    writing.add_argument("--docs", type=Path, default=Path("docs"), help="folder of methods.md")
    for each in (making, writing):
        each.add_argument("--work", type=Path, default=Path("out/methods"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = options_of(arguments)
    try:
        if options.command == "make":
            make(options.work, options.stages)
        else:
            from methods_report import write

            write(options.work, options.docs)
    except SLDError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
