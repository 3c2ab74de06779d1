"""The guided runs of a pipeline that hands its predictions to guiders: what its guiders share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from sldcore.call_checks import require_single_pass
from sldcore.catalogue import current, using
from sldcore.encoding import ConceptEncoder, RunConcepts
from sldcore.errors import GuidanceError, SafetyFailure
from sldcore.families.base import NO_OPTIONS, TextOptions
from sldcore.families.noise import schedule_of
from sldcore.guidance.base import StepHook
from sldcore.modular.layout import Layout
from sldcore.modular.pipelines import texts_of
from sldcore.modular.rows import Slot, slots_of
from sldcore.policy import SafetyPolicy
from sldcore.resolution import check_policies, resolve_policy
from sldcore.run import GuidedRun, StepPlan
from sldcore.types import Predictions, Row, Schedule, Trace

CONCEPT: Final = "pred_concept"


class Runs:
    """Runs the policies of one pipeline, one run after the other; a run begins where a guider is told step 0.

    Nothing downstream can withhold a picture, so the first failure raises.
    """

    def __init__(
        self, pipe: Any, policies: Sequence[SafetyPolicy], step_hooks: Sequence[StepHook] = ()
    ) -> None:
        self.pipe = pipe
        self.policies = tuple(policies)
        self.texts = texts_of(pipe)
        self._hooks = tuple(step_hooks)
        self._catalogue = current()
        require_single_pass(self.policies, "a guider")
        check_policies(list(dict.fromkeys(self.policies)))
        self._resolved = {policy: resolve_policy(policy) for policy in dict.fromkeys(self.policies)}
        self._encoder = ConceptEncoder(pipe, self.texts)
        self._options = NO_OPTIONS
        self._concepts: dict[TextOptions, RunConcepts] = {}
        self._run: GuidedRun | None = None
        self._checked = True
        self._slots: dict[tuple[Row, ...], list[Slot]] = {}
        self._names: dict[tuple[Row, ...], int] = {}
        self.layout = Layout()

    @property
    def acting(self) -> str:
        """Name of a policy that guides or has step hooks; empty if nothing has to act."""
        names = [policy.name for policy in self.policies if policy.guides or policy.step_hooks]
        return names[0] if names else "off" if self._hooks else ""

    @property
    def run(self) -> GuidedRun | None:
        """The latest run; None before the first step."""
        return self._run

    @property
    def trace(self) -> Trace:
        """The trace of the latest run, moved to the host.

        Raises:
            SafetyFailure: there is none.
        """
        if self._run is None:
            raise SafetyFailure(
                "there is no trace: the pipeline has not asked this guider for classifier-free guidance. Call the pipeline "
                "that the guider was made for, with its base guider enabled"
            )
        return self._run.trace

    @property
    def concepts(self) -> RunConcepts:
        """The concepts, encoded as the current call encodes its prompts."""
        if self._options not in self._concepts:
            with using(self._catalogue):
                self._concepts = {self._options: self._encoder.prepare(self.policies, self._options)}
        return self._concepts[self._options]

    def encode(self, options: TextOptions) -> None:
        """Encode the concepts as a call with these options encodes its prompts, if they are not yet.

        Raises:
            ConceptError: a concept cannot be had, or has a term that is too long.
        """
        self._options = options
        _ = self.concepts

    def begin(self, at: Any, batch: int, device: torch.device, parts: int, scale: float | None) -> StepPlan:
        """The step that the guider ``at`` has been told, and the concept rows that it needs.

        Raises:
            GuidanceError: steps were left out, or the schedule cannot be told.
        """
        if at._step == 0:
            self.close()
            schedule = replace(
                upcoming(self.pipe.scheduler, at._timestep, at._num_inference_steps), guidance_scale=scale
            )
            self._start(schedule, batch, device, parts)
        run = self._run
        if run is None or at._step != run.calls:
            raise GuidanceError(
                f"the guider was told step {at._step} and expected {0 if run is None else run.calls}; a run begins at step 0 "
                f"and leaves none out. If the pipeline has several guiders, give it all of guard()'s, or SafetyGuider.beside()"
            )
        plan = run.begin()
        if plan.own_texts:
            raise GuidanceError(
                "a guidance method puts other texts in place of the pipeline's own, which a guider cannot; use it with the "
                "model's classic pipeline, or another method"
            )
        return plan

    def slots(self, rows: tuple[Row, ...], batch: int, device: torch.device) -> list[Slot]:
        """The batches for a step's concept rows; made once for each set of rows, so that no step waits for the host."""
        if rows not in self._slots:
            self._slots[rows] = slots_of(rows, batch, self.concepts.arguments, device)
        return self._slots[rows]

    def name_of(self, slot: Slot) -> str:
        """The same at every step for a batch with the same texts: diffusers' caches keep apart what has another name."""
        texts = tuple(row for _, row in slot.rows)
        number = self._names.setdefault(texts, len(self._names))
        return f"{CONCEPT}_{number}" if number else CONCEPT

    def changes(self, plan: StepPlan) -> bool:
        """Whether :meth:`finish` can change a prediction."""
        return self._run is not None and self._run.changes(plan)

    def finish(self, plan: StepPlan, given: Predictions) -> tuple[Tensor, Tensor]:
        """As :meth:`sldcore.run.GuidedRun.finish`; after the last step also :meth:`close`."""
        made = (given.uncond, given.cond) if self._run is None else self._run.finish(plan, given)
        self.end_if_finished()
        return made

    def end_if_finished(self) -> None:
        """After the last step: :meth:`close`."""
        if self._run is not None and self._run.finished:
            self.close()

    def close(self) -> None:
        """Look at what the latest run left behind, once.

        Raises:
            SafetyFailure: NaN or Inf, or a method that never acted.
        """
        if self._run is None or self._checked:
            return
        self._checked = True
        idle = self._run.idle().values() if self._run.finished else ()
        for failure in [*self._run.nonfinite().values(), *idle]:
            raise SafetyFailure(
                f"{failure.source} {failure.version}: {failure.error}; the picture cannot be trusted"
            )

    def _start(self, schedule: Schedule, batch: int, device: torch.device, parts: int) -> None:
        concepts = self.concepts
        self.layout = layout = Layout()
        self._slots, self._names = {}, {}
        with using(self._catalogue):
            self._run = GuidedRun(
                schedule,
                self._per_sample(batch),
                self._resolved,
                concepts,
                self._hooks,
                True,
                device,
                layout.spatial_map,
                parts,
            )
        self._checked = False

    def _per_sample(self, batch: int) -> Sequence[SafetyPolicy]:
        if len(self.policies) == 1:
            return self.policies * batch
        if len(self.policies) != batch:
            raise GuidanceError(
                f"{len(self.policies)} policies were given, but the pipeline generates {batch} pictures in one call; give "
                f"one policy, or one per picture in the pipeline's order (all pictures of a prompt together)"
            )
        return self.policies


def upcoming(scheduler: Any, timestep: Any, num_inference_steps: int) -> Schedule:
    """The denoiser calls from ``timestep`` on, at the first step of a loop of ``num_inference_steps`` solver steps.

    A loop may leave out timesteps at the beginning (it starts from a picture) and at the end (left to a refiner). Solvers of
    second order make more calls than steps, and PNDM one more.

    Raises:
        GuidanceError: the scheduler does not have this timestep, or its noise levels cannot be told.
    """
    timesteps = scheduler.timesteps
    first = getattr(scheduler, "begin_index", None)
    if first is None:
        at = (timesteps == torch.as_tensor(timestep).to(timesteps)).nonzero().flatten().tolist()
        if not at:
            raise GuidanceError(
                f"the pipeline's denoising loop begins at timestep {float(timestep):g}, which is none of those of its "
                f"{type(scheduler).__name__}, so noise levels cannot be told; use the scheduler of the pipeline's own loop"
            )
        first = at[0]
    remaining = len(timesteps) - int(first)
    solver_steps = getattr(scheduler, "num_inference_steps", None)
    order = int(getattr(scheduler, "order", 1))
    more = len(timesteps) - solver_steps * order if solver_steps else 0
    calls = min(remaining, num_inference_steps * order + more)
    whole = schedule_of(scheduler, remaining)
    return replace(
        whole,
        timesteps=whole.timesteps[:calls],
        noise_levels=whole.noise_levels[:calls],
        epsilon_factors=whole.epsilon_factors[:calls],
        denoised_factors=whole.denoised_factors[:calls],
    )
