"""A host for worker processes whose pictures are arithmetic, and which does what prompts tell it: die, hang, or wait for a file.

A model's ``source`` names a folder for it: a file ``refuse`` or ``die`` there is what its warm-up does.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sldcore.errors import ConfigurationError
from sldcore.policy import SafetyPolicy
from sldcore.service.jobs import (
    Answer,
    Event,
    Failed,
    Job,
    Partial,
    PictureAnswer,
    PictureJob,
    Progress,
    ReviewAnswer,
    ReviewJob,
)
from sldcore.service.settings import ModelSettings, ServiceSettings

POLICY = SafetyPolicy()


def picture(id: str, prompt: str = "a meadow", **more: Any) -> PictureJob:
    fields = {"model": "m", "seed": 0, "policy": POLICY, "width": 64, "height": 64, "steps": 2} | more
    return PictureJob(id=id, prompt=prompt, **fields)


def review(id: str, text: str = "a meadow", **more: Any) -> ReviewJob:
    return ReviewJob(**({"id": id, "model": "m", "policy": POLICY, "text": text} | more))


def settings_for(
    folder: Path, models: Sequence[str] = ("m",), workers: int = 1, **limits: Any
) -> ServiceSettings:
    """Models of one device each; the first is on the CPU."""
    devices = ["cpu", *(f"cuda:{number}" for number in range(len(models) - 1))]
    named = {
        name: ModelSettings(source=str(folder), device=device)
        for name, device in zip(models, devices, strict=True)
    }
    return ServiceSettings(
        models=named, workers=workers, limits={"batch_wait": 0.01, "filter_grace": 30} | limits
    )


def png_of(job: PictureJob) -> bytes:
    """What the host makes of a job: other bytes for each prompt, seed and shape."""
    return hashlib.sha256(repr((job.prompt, job.seed, job.shape)).encode()).digest()


class FakeHost:
    """Does each job's order at each step: ``wait FILE`` until it is there, ``kill``, ``kill-once FILE``, ``hang``, ``raise``, ``forget``."""

    def __init__(self, models: Mapping[str, ModelSettings]) -> None:
        self._names = list(models)
        self._folders = [Path(model.source) for model in models.values()]

    def warm_up(self, policies: Sequence[SafetyPolicy]) -> None:
        for folder in self._folders:
            if (folder / "refuse").exists():
                raise ConfigurationError("no such weights; name others")
            if (folder / "die").exists():
                os._exit(3)

    def sizes(self) -> dict[str, list[tuple[int, int]]]:
        return {name: [(64, 64), (32, 32)] for name in self._names}

    def run(
        self,
        jobs: Sequence[Job],
        emit: Callable[[Event], None],
        cancelled: Callable[[], Collection[str]],
    ) -> list[Answer]:
        for step in range(max(getattr(job, "steps", 1) for job in jobs)):
            for job in jobs:
                if isinstance(job, PictureJob) and job.id not in cancelled():
                    _obey(job, cancelled)
                    emit(Progress(job.id, step + 1, job.steps))
                    if step < job.partials:
                        emit(Partial(job.id, step, png_of(job)))
        answers = [_answer(job, len(jobs), cancelled()) for job in jobs]
        return [
            answer
            for job, answer in zip(jobs, answers, strict=True)
            if getattr(job, "prompt", "") != "forget"
        ]


def _answer(job: Job, together: int, cancelled: Collection[str]) -> Answer:
    if job.id in cancelled:
        return Failed(job.id, "cancelled", "it was given up")
    account = {"together": together, "pid": os.getpid()}
    if isinstance(job, ReviewJob):
        return ReviewAnswer(job.id, account | {"text": job.text})
    return PictureAnswer(job.id, png_of(job), account)


def _obey(job: PictureJob, cancelled: Callable[[], Collection[str]]) -> None:
    order, _, file = job.prompt.partition(" ")
    if order == "wait":
        Path(f"{file}.reached").touch()
        while not Path(file).exists() and job.id not in cancelled():
            time.sleep(0.01)
    elif order == "kill" or (order == "kill-once" and not Path(file).exists()):
        if file:
            Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "hang":
        Path(f"{file}.reached").touch()
        time.sleep(600)
    elif order == "raise":
        raise RuntimeError("the host broke")
