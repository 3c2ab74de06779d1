"""A backend without a model: tiny pictures at once, and everything that a real one may do wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

from PIL import Image

from sldcore.provenance import report_document
from sldcore.service.backend import Busy, Draining, Status
from sldcore.service.jobs import (
    Answer,
    Event,
    Failed,
    Job,
    Partial,
    PictureAnswer,
    PictureJob,
    Progress,
    Reason,
    ReviewAnswer,
)
from sldcore.types import Failure, Report, Verdict

FORBIDDEN = "clown"
"""What the fake filter flags: the word in a prompt or text, and pictures that are mostly red."""


def png_of(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class FakeBackend:
    """Answers at once, or as told: ``fails`` by seed, ``refuses`` all, ``holds`` until released or cancelled."""

    fails: Mapping[int, Reason] = field(default_factory=dict)
    refuses: Exception | None = None
    breaks: Exception | None = None
    error: str = ""
    hold: bool = False
    ready: bool = True
    seen: list[Job] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    drained: float | None = None

    def __post_init__(self) -> None:
        self.running = asyncio.Event()
        self.draining = False

    async def start(self) -> None:
        self.draining = False

    async def run(
        self, jobs: Sequence[Job], deadline: float, on_event: Callable[[Event], None] | None = None
    ) -> list[Answer]:
        if self.draining:
            raise Draining
        for problem in (self.refuses, self.breaks):
            if problem is not None:
                raise problem
        self.seen += jobs
        try:
            for job in jobs:
                if on_event is not None and isinstance(job, PictureJob):
                    await self._tell(job, on_event)
            self.running.set()
            if self.hold:
                await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += [job.id for job in jobs]
            raise
        return [self._answer(job) for job in jobs]

    async def _tell(self, job: PictureJob, on_event: Callable[[Event], None]) -> None:
        for step in range(1, 4):
            on_event(Progress(job.id, step, 3))
            await asyncio.sleep(0)
        for index in range(job.partials):
            on_event(Partial(job.id, index, png_of((0, 0, 40 * index))))

    def _answer(self, job: Job) -> Answer:
        if isinstance(job, PictureJob) and job.seed in self.fails:
            return Failed(job.id, self.fails[job.seed], "told to fail")
        if isinstance(job, PictureJob):
            account = self._account(job, job.prompt, job.seed, FORBIDDEN in job.prompt)
            png = png_of((0, 0, 0)) if account["withheld"] else png_of((0, job.seed % 256, 255))
            answer = PictureAnswer(
                job.id, png, account, timings={"encode": 0.125, "denoise": 0.375, "review": 0.25}
            )
            if job.explain:
                curves = {"violence": {"norm": [None, 1.0], "relevance": [None, 0.5]}}
                answer = replace(answer, heat=png_of((9, 9, 9)), curves=curves)
            if job.unguided:
                answer = replace(answer, unguided=png_of((1, 2, 3)), unguided_account=account)
            return answer
        return ReviewAnswer(job.id, self._account(job, job.text or "", None, _flagged(job.text, job.picture)))

    def _account(self, job: Job, prompt: str, seed: int | None, flagged: bool) -> dict[str, Any]:
        scores, limits = {FORBIDDEN: 0.9 if flagged else 0.1, "axe": 0.2}, {FORBIDDEN: 0.5, "axe": 0.5}
        verdict = Verdict("fake", "1.0", flagged, scores, limits)
        errors = (Failure("fake", "1.0", self.error),) if self.error else ()
        action = "block" if errors else "black" if flagged else "none"
        report = Report(
            prompt, seed, job.policy.name, job.policy.digest, {}, (verdict,), action, errors=errors
        )
        return {**report_document(report), "plain_rows": 0, "trace": [], "categories": list(verdict.above)}

    async def drain(self, seconds: float) -> None:
        self.drained = seconds
        self.draining = True

    def status(self) -> Status:
        return Status(self.ready, 1, int(self.ready), 0, 64, 0, restarts=2, batches={1: 3, 4: 1})


def busy() -> Busy:
    return Busy(2.5)


def _flagged(text: str | None, picture: bytes | None) -> bool:
    if picture is None:
        return FORBIDDEN in (text or "")
    with Image.open(BytesIO(picture)) as image:
        red, green, _ = image.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    return bool(red > 128 > green)
