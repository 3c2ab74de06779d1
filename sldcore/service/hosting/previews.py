"""Pictures of the way there: what the model thinks the finished picture is going to look like, reviewed like a finished one.

At a step where one is due, the prediction that the pipeline hands to its scheduler is caught: guided, scaled and whatever else the
pipeline and the policy's step hooks made of it. With the latents of the step it gives an estimate of x0, which the VAE decodes.

A picture of the way is shown only if nothing could withhold it: the prompt passed the policy's prompt filters, no filter flags it
or fails, nothing has failed so far, guidance has acted if the policy guides, all probes of its gate are made and did not ask for
another pass, and the policy's marks could be put on it, file marks included. So a policy without filters shows them just as it shows
its finished pictures. Pipelines with a safety checker of their own, or without a VAE for pictures, show none.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from math import ceil
from typing import Any, Final

from numpy.typing import NDArray
from torch import Tensor

from sldcore.catalogue import using
from sldcore.errors import SafetyFailure
from sldcore.filters.base import PictureContext
from sldcore.filters.chain import Findings
from sldcore.guidance.gate import probe_steps
from sldcore.guidance.windows import acting_steps
from sldcore.outcome import read_only, report_of
from sldcore.policy import SafetyPolicy
from sldcore.resolution import catalogue_for
from sldcore.review import as_pil
from sldcore.run import GuidedRun
from sldcore.service.hosting.hosted_engine import HostedEngine, PipelineCall
from sldcore.service.hosting.latents import can_decode, decoded
from sldcore.service.hosting.png_files import png_bytes
from sldcore.service.hosting.redaction import traceback_text
from sldcore.service.jobs import Partial, PictureJob
from sldcore.types import Failure, Predictions, Schedule, Step

logger = logging.getLogger("sldcore.service")

NOWHERE: Final = (0.0, 0.0)
EARLIEST: Final = 0.3
"""Share of the run before which no picture of the way is made: filters are made for sharp pictures. Of 33 pictures of the playground
with a glyph the filter missed it in 4 estimates at a fifth of the run, and in none from two fifths on."""


class Previews:
    """The pictures of the way of one engine call.

    Args:
        engine: what makes the pictures.
        jobs: in the order of the engine call's prompts.
        show: takes each picture that may be shown.
        sent: how many of them each job, by id, has got; counted on here.
    """

    def __init__(
        self,
        engine: HostedEngine,
        jobs: Sequence[PictureJob],
        show: Callable[[Partial], None],
        sent: Counter[str],
    ) -> None:
        self._engine, self._jobs, self._show, self._sent = engine, jobs, show, sent
        self._passed: set[int] = set()
        self._call: PipelineCall | None = None
        self._due: dict[int, list[int]] | None = None  # step to samples, once the schedule is known
        self._caught: Any = None  # the scheduler whose next step is caught

    def on_prompts(self, jobs: Sequence[int], findings: Sequence[Findings]) -> None:
        """Prompts that were flagged or not reviewed get no pictures of the way, though their policies may show the last one."""
        self._passed = {
            job
            for job, found in zip(jobs, findings, strict=True)
            if not found.flagged_by and not found.failures
        }

    def begins(self, call: PipelineCall) -> None:
        """A pipeline call begins."""
        self._call, self._due = call, None

    def ends(self) -> None:
        """The pipeline call is over."""
        self._call = None
        self._let_go()

    def on_step(self, step: Step, predictions: Predictions) -> None:
        """Catch what the scheduler is given at this step, if a picture is due."""
        session = self._engine.session
        if self._call is None or session is None or session.run is None:
            return
        if self._due is None:
            self._due = self._planned(self._call, session.run.schedule)
        samples = self._due.get(step.index, [])
        if samples and predictions.latents is not None and step.denoised_factors != NOWHERE:
            self._catch(step, predictions.latents, samples, session.run)

    def _planned(self, call: PipelineCall, schedule: Schedule) -> dict[int, list[int]]:
        due: dict[int, list[int]] = {}
        if not can_decode(self._engine.pipe):
            return due
        for sample, number in enumerate(call.jobs):
            job = self._jobs[number]
            missing = job.partials - self._sent[job.id]
            if number in self._passed and missing > 0:
                for step in due_steps(missing, first_step(call.guiding[sample], schedule), len(schedule)):
                    due.setdefault(step, []).append(sample)
        return due

    def _catch(self, step: Step, latents: Tensor, samples: Sequence[int], run: GuidedRun) -> None:
        self._caught = scheduler = self._engine.pipe.scheduler

        @wraps(scheduler.step)
        def caught(prediction: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._let_go()
            try:
                self._look(step, latents, prediction, samples, run)
            except Exception as error:  # no picture of the way is no reason to lose the finished one
                prompts = [job.prompt for job in self._jobs]
                logger.warning("no picture of the way:\n%s", traceback_text(error, prompts))
            return scheduler.step(prediction, *args, **kwargs)

        scheduler.step = caught

    def _let_go(self) -> None:
        if self._caught is not None:
            vars(self._caught).pop("step", None)
            self._caught = None

    def _look(
        self, step: Step, latents: Tensor, prediction: Tensor, samples: Sequence[int], run: GuidedRun
    ) -> None:
        sound = [sample for sample in samples if sample not in unsound(run)]
        if not sound or self._call is None:
            return
        on_latents, on_prediction = step.denoised_factors
        sign = getattr(
            self._engine.family, "sign", 1
        )  # what the scheduler is given may be the denoiser's opposite
        x0 = on_latents * latents[sound, : prediction.shape[1]] + sign * on_prediction * prediction[sound]
        heat = run.trace.heat
        for sample, pixels in zip(sound, decoded(self._engine.pipe, x0), strict=True):
            if pixels is not None:
                self._offer(self._call, sample, pixels, read_only(heat[sample]))

    def _offer(self, call: PipelineCall, sample: int, pixels: NDArray[Any], heat: NDArray[Any]) -> None:
        """Show a picture if nothing speaks against it."""
        made, job = call.samples[sample], self._jobs[call.jobs[sample]]
        texts = self._engine.concept_texts(call.guiding[sample], call.arguments)
        context = PictureContext(str(made.prompt), made.seed, made.policy, texts, heat)
        picture = as_pil(pixels)
        (found,) = self._engine.review([picture], [context])
        if found.flagged_by or found.failures:
            return
        marked = self._engine.marked(picture, context)
        if isinstance(marked, Failure):
            return
        try:
            content = self._engine.signed(png_bytes(marked), report_of(made, context), made.policy)
        except SafetyFailure:
            return
        self._show(Partial(job.id, self._sent[job.id], content))
        self._sent[job.id] += 1


def unsound(run: GuidedRun) -> set[int]:
    """Samples of which nothing may be shown as things stand.

    They failed, are left to another pass (and may be answered with another sample's prediction), hold NaN, or were not guided yet.
    """
    failed = {sample for sample, failures in run.failures.items() if failures}
    return failed | run.restarts | set(run.nonfinite()) | set(run.idle())


def first_step(guiding: SafetyPolicy, schedule: Schedule) -> int:
    """The first step whose estimate may be shown: it is not too blurred, guidance acts, and its gate has decided."""
    spec, sharp = guiding.guidance, ceil(EARLIEST * len(schedule))
    if spec is None:
        return sharp
    with using(catalogue_for([guiding])):
        acting = acting_steps(spec.window, schedule)
    opens = next((step for step, strength in enumerate(acting) if strength), len(schedule))
    decided = 1 + max(probe_steps(spec.gate, schedule)) if spec.gate is not None else 0
    return max(sharp, opens, decided)


def due_steps(count: int, first: int, total: int) -> list[int]:
    """Up to ``count`` steps spread evenly between the first that may be shown and the last one, which is the finished picture's."""
    span = total - 1 - first
    spread = (first + round(span * number / (count + 1)) for number in range(1, count + 1))
    return sorted({step for step in spread if first <= step < total - 1})
