"""``sld`` in processes that are forked from one which has imported everything: a start costs no imports.

They are processes like any other, which can be killed at any moment, and share nothing but their code.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

IMPORTED = (
    "sldcore.cli",
    "sldcore.engine",
    "sldcore.evaluation.reporting",
    "sldcore.evaluation.running",
    "sldcore.evaluation.scoring",
    "sldcore.playground.classifier",
    "sldcore.guidance.gate",
    "sldcore.guidance.sld",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.auto.modeling_auto",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.clip.image_processing_pil_clip",
)
"""What an evaluation of the playground imports; a name too few costs time, nothing else."""


class ForkedRun:
    """A process that runs ``sld`` with these arguments; ``said`` is the file that gets its output."""

    def __init__(self, arguments: list[str], said: Path, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        self._said = said
        self._process: ForkServerProcess = context.Process(target=_sld, args=(arguments, said, environment))
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, or None while it runs; that of a signal is negative."""
        return self._process.exitcode

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self._process.kill()
        self._process.join()

    def finish(self, seconds: float = 600) -> str:
        """Wait until it has succeeded, and give what it said."""
        self._process.join(seconds)
        said = self._said.read_text("utf-8")
        assert self._process.exitcode == 0, said
        return said


def _sld(arguments: list[str], said: Path, environment: Mapping[str, str]) -> None:
    """What happens in the forked process."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with said.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["sld", *arguments]
    from sldcore.cli import main

    main()
