"""Sessions: a denoiser under guard, from the moment the hook goes on until it is gone again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, Final

from diffusers.hooks import HookRegistry
from torch import nn

from sldcore.call_checks import require_single_pass
from sldcore.catalogue import current, using
from sldcore.denoiser import DenoiserCall, Forward, forward_signature, install, installing, remove
from sldcore.encoding import ConceptEncoder, RunConcepts
from sldcore.errors import GuidanceError, SafetyFailure
from sldcore.families import family_of
from sldcore.families.base import Family, TextOptions
from sldcore.guidance.base import StepHook
from sldcore.guidance.gate import probe_steps
from sldcore.guidance.windows import acting_steps
from sldcore.modular import takes_guider
from sldcore.policy import SafetyPolicy
from sldcore.prompt_texts import CallPrompts
from sldcore.resolution import catalogue_for, check_policies, resolve_policy, scheduler_of
from sldcore.run import GuidedRun
from sldcore.stepping import Apart, Stepper, Together, require_separable_caches
from sldcore.types import Trace

Policies = Sequence[SafetyPolicy]
LENT: Final = ("maybe_free_model_hooks", "encode_prompt")
"""Methods of the pipeline that are wrapped during a session."""


class Session:
    """Guards one pipeline. Each call of the pipeline inside the session is one run.

    Not to be made directly: :func:`guard` and the engine do, and make sure that the hook is removed again.
    """

    def __init__(
        self,
        pipe: Any,
        family: Family,
        encoder: ConceptEncoder,
        policies: Policies,
        step_hooks: Sequence[StepHook] = (),
        *,
        strict: bool,
    ) -> None:
        self._pipe = pipe
        self._family = family
        self._encoder = encoder
        self._policies = tuple(policies)
        self._catalogue = current()
        if strict:
            require_single_pass(self._policies, "guard()")
        check_policies(list(dict.fromkeys(self._policies)))
        self._resolved = {policy: resolve_policy(policy) for policy in dict.fromkeys(self._policies)}
        self.scheduler = type(pipe.scheduler).__name__
        self._hooks = tuple(step_hooks)
        self._strict = strict
        self._encoded: Mapping[str, Any] = {}  # arguments of the call's own encode_prompt
        self._runs: list[GuidedRun] = []
        self._stepper: Stepper | None = None
        self._timesteps: Any = None
        self._live = self._inside = self._used = self._ended = False

    @property
    def run(self) -> GuidedRun | None:
        """The latest run; None before the first denoiser call."""
        return self._runs[-1] if self._runs else None

    @property
    def runs(self) -> tuple[GuidedRun, ...]:
        """All runs of the latest pipeline call: one, unless it goes through its timesteps several times."""
        return tuple(self._runs)

    @property
    def waiting(self) -> bool:
        """True if the latest step lacks a denoiser call, so that it was not guided."""
        return self._stepper is not None and self._stepper.waiting

    @property
    def trace(self) -> Trace:
        """The trace of the latest pipeline call, moved to the host.

        Raises:
            SafetyFailure: the pipeline has not called its denoiser with classifier-free guidance yet.
        """
        if self.run is None:
            raise SafetyFailure(
                "there is no trace: the guarded denoiser has not been called with classifier-free guidance. Call the "
                "pipeline that was given to guard(), inside the with block, with guidance_scale > 1"
            )
        return self.run.trace

    def concepts(self, options: TextOptions) -> RunConcepts:
        """The concepts of the session's policies, encoded as a call with these options encodes its prompts."""
        with using(self._catalogue):
            return self._encoder.prepare(
                self._policies, options
            )  # remembers what it encoded, and if it still holds

    @contextmanager
    def active(self) -> Iterator[Session]:
        """Keep the hook on the denoiser, whatever happens.

        Model offloading takes all hooks off and puts its own on again at the end of each pipeline call; ours is moved
        out of the way before that and put back after it, so that the next call is guarded too.
        """
        modules = self._family.denoisers(self._pipe)
        calls = [partial(self._intercepted, module, forward_signature(module)) for module in modules]
        registries: list[HookRegistry] = []
        free_hooks, encode_prompt = (
            self._pipe.maybe_free_model_hooks,
            getattr(self._pipe, "encode_prompt", None),
        )

        def put_on() -> None:
            for module, call in zip(modules, calls, strict=True):
                registries.append(install(module, call))

        def take_off() -> None:
            while registries:
                remove(registries.pop())

        def free_hooks_around_ours() -> None:
            with installing:
                take_off()
                try:
                    free_hooks()
                finally:
                    put_on()
            self._require_use()

        own = self._pipe.scheduler
        before = {name: value for name, value in vars(self._pipe).items() if name in LENT}
        try:
            with installing:
                put_on()
            self._live = True
            with using(self._catalogue):
                chosen = scheduler_of(self._policies, own.config)
            if chosen is not None:
                self._pipe.scheduler = chosen
                self.scheduler = type(chosen).__name__
            self._pipe.maybe_free_model_hooks = free_hooks_around_ours
            if encode_prompt is not None:
                self._pipe.encode_prompt = self._listening(encode_prompt)
            yield self
        finally:
            self._live = False
            for name in LENT:
                vars(self._pipe).pop(name, None)
            vars(self._pipe).update(before)
            self._pipe.scheduler = own
            take_off()

    def _listening(self, encode_prompt: Callable[..., Any]) -> Callable[..., Any]:
        """``encode_prompt``, noting what it is called with: concepts are encoded in the same way."""
        names = inspect.signature(encode_prompt)

        def listen(*args: Any, **kwargs: Any) -> Any:
            self._encoded = names.bind(*args, **kwargs).arguments
            return encode_prompt(*args, **kwargs)

        listen.sldcore_original = encode_prompt  # type: ignore[attr-defined]
        return listen

    def _intercepted(
        self, module: nn.Module, signature: inspect.Signature, forward: Forward, args: Any, kwargs: Any
    ) -> Any:
        # Offloading that is switched on under our hook brings an old copy of it back, later or below the new one.
        if self._inside or not self._live:
            return forward(*args, **kwargs)
        self._inside = True
        try:
            return self._intercept(module, signature, forward, args, kwargs)
        finally:
            self._inside = False

    def _require_use(self) -> None:
        """At the end of a pipeline call whose picture the session cannot withhold: was it guarded at all?"""
        used, self._used = self._used, False
        self._encoded, self._ended = {}, True
        if not self._strict:
            return
        if self.waiting:
            raise SafetyFailure(
                "the denoiser was called once at the last step and not again, so nothing guided the picture: "
                f"{self._advice}"
            )
        if not used and any(policy.guides for policy in self._policies):
            raise SafetyFailure(
                "the pipeline never called the denoiser that is under guard, so its picture would be unguided; do not "
                "replace the pipeline's denoiser inside guard()"
            )
        for run in self._runs:
            self._require_sound(run)

    def _require_sound(self, run: GuidedRun) -> None:
        """Raise for what went wrong in a run without an exception.

        Raises:
            SafetyFailure: NaN or Inf, or a picture that was to be guided and never was.
        """
        for failure in run.nonfinite().values():
            raise SafetyFailure(
                f"{failure.source} {failure.version}: {failure.error}; the picture cannot be trusted"
            )
        for failure in run.idle().values():
            stopped = (
                ""
                if run.finished
                else f" (the call was stopped after {run.calls} of {len(run.schedule)} steps)"
            )
            raise SafetyFailure(
                f"{failure.source} {failure.version}: {failure.error}{stopped}; the picture cannot be trusted"
            )

    @property
    def _advice(self) -> str:
        negative = (
            " and a negative_prompt (an empty one will do)" if self._family.needs_negative_prompt else ""
        )
        return f"use {self._family.guidance_argument} > 1{negative}, or the policy 'off' without step hooks"

    def _intercept(
        self, module: nn.Module, signature: inspect.Signature, forward: Forward, args: Any, kwargs: Any
    ) -> Any:
        self._used = True
        parts = self._family.parts(self._pipe, self._encoded)
        if not parts:
            self._refuse_to_do_nothing()
            return forward(*args, **kwargs)
        own = (self._part(parts),) if self._family.apart else parts
        call = DenoiserCall.bind(self._family, signature, args, kwargs, own)
        run, stepper = self._run_of(call, parts)
        output = stepper.call(module, forward, call)
        if run.hopeless:
            self._pipe._interrupt = True
        if self._strict and run.finished and not stepper.waiting:
            self._require_sound(run)
        return output

    def _refuse_to_do_nothing(self) -> None:
        acting = [policy.name for policy in self._policies if policy.guides or policy.step_hooks]
        if acting or self._hooks:
            raise GuidanceError(
                f"policy '{acting[0] if acting else 'off'}' cannot act: the pipeline was called without classifier-free "
                f"guidance, so there is no unconditional prediction; {self._advice}"
            )

    def _run_of(self, call: DenoiserCall, parts: tuple[str, ...]) -> tuple[GuidedRun, Stepper]:
        """The current run, or a new one if the pipeline has set new timesteps since."""
        timesteps = self._pipe.scheduler.timesteps
        if not self._runs or self._stepper is None or timesteps is not self._timesteps:
            self._timesteps = timesteps
            concepts = self.concepts(self._family.text_options(self._pipe, self._encoded))
            if self._ended:
                self._runs, self._ended = [], False
            self._runs.append(self._new_run(call, parts, concepts))
            self._stepper = self._new_stepper(self._runs[-1], concepts, parts)
        return self._runs[-1], self._stepper

    def _new_run(self, call: DenoiserCall, parts: tuple[str, ...], concepts: RunConcepts) -> GuidedRun:
        arguments = dict(call.bound.arguments)
        if any(policy.guides for policy in self._policies):
            require_separable_caches(self._family.denoisers(self._pipe))
        with using(self._catalogue):
            return GuidedRun(
                self._family.schedule(self._pipe),
                self._per_sample(call.batch),
                self._resolved,
                concepts,
                self._hooks,
                self._strict,
                call.latents.device,
                lambda strength: self._family.spatial_map(strength, arguments),
                len(parts),
                CallPrompts(self._pipe, self._family, self._encoded, call, concepts),
            )

    def _new_stepper(self, run: GuidedRun, concepts: RunConcepts, order: tuple[str, ...]) -> Stepper:
        if self._family.apart:
            return Apart(run, concepts, self._pipe, self._family, order, self._position)
        return Together(run, concepts, self._pipe, self._family)

    def _part(self, order: tuple[str, ...]) -> str:
        """Which part a call is, of a denoiser that is called once for each."""
        known = isinstance(self._stepper, Apart) and self._pipe.scheduler.timesteps is self._timesteps
        return self._stepper.next_part if known and isinstance(self._stepper, Apart) else order[0]

    def _position(self) -> Any:
        """Where the scheduler is; it moves on between the steps and not between the calls of one.

        Raises:
            GuidanceError: it does not tell.
        """
        scheduler = self._pipe.scheduler
        if not hasattr(scheduler, "step_index"):
            raise GuidanceError(
                f"{type(scheduler).__name__} does not tell its step, so the two denoiser calls of a step cannot be told from "
                f"those of two steps; use FlowMatchEulerDiscreteScheduler, or another scheduler with a step_index"
            )
        return scheduler.step_index

    def _per_sample(self, batch: int) -> Policies:
        if len(self._policies) == 1:
            return self._policies * batch
        if len(self._policies) != batch:
            raise GuidanceError(
                f"{len(self._policies)} policies were given, but the pipeline generates {batch} pictures in one call; give "
                f"one policy, or one per picture in the pipeline's order (all pictures of a prompt together)"
            )
        return self._policies


def check_windows(pipe: Any, family: Family, policies: Iterable[SafetyPolicy], steps: int) -> None:
    """Find a scheduler that does not fit, and a window that never opens, before the batch that would meet it.

    Raises:
        ConfigurationError: there is one.
    """
    for policy in policies:
        with using(catalogue_for([policy])):
            scheduler = scheduler_of([policy], pipe.scheduler.config) or deepcopy(pipe.scheduler)
            if scheduler.config.get("use_dynamic_shifting"):
                continue  # its noise levels depend on the size of the picture; the session looks at them
            scheduler.set_timesteps(steps)
            schedule = family.noise_schedule(scheduler, len(scheduler.timesteps))
            windows = [use.window for use in policy.concepts if use.window is not None]
            for window in [*windows, *([policy.guidance.window] if policy.guidance else [])]:
                acting_steps(window, schedule)
            if policy.guidance is not None and policy.guidance.gate is not None:
                probe_steps(policy.guidance.gate, schedule)


def as_policy(policy: SafetyPolicy | str) -> SafetyPolicy:
    """A policy, or the preset of that name."""
    return policy if isinstance(policy, SafetyPolicy) else SafetyPolicy.preset(policy)


@contextmanager
def guard(
    pipe: Any,
    policy: SafetyPolicy | str | Sequence[SafetyPolicy | str],
    step_hooks: Sequence[StepHook] = (),
) -> Iterator[Any]:
    """Guide every call of ``pipe`` inside the ``with`` block; leave it as it was afterwards.

    For your own calls of a diffusers pipeline, classic or modular, with whatever arguments it takes. Where a pipeline has a
    guider, a :class:`sldcore.SafetyGuider` is put around it. Only guidance acts here: nothing
    reviews the pictures, so a failure (an exception in a method or hook, NaN) raises instead of withholding them.

    Args:
        pipe: a pipeline of a supported class.
        policy: a policy, the name of a preset, or one per picture of the call.
        step_hooks: objects that see, and may edit, every step.

    Raises:
        UnsupportedPipelineError: no family knows the pipeline.
        ConceptError: a concept cannot be had, or has a term that is too long.
        SessionError: another session guards this pipeline.
        GuidanceError: at the first denoiser call, if guidance could not act (no classifier-free guidance, window).
        SafetyFailure: at the step that failed.
    """
    policies = [as_policy(each) for each in ([policy] if isinstance(policy, SafetyPolicy | str) else policy)]
    if not policies:
        raise GuidanceError("guard() was given an empty list of policies; give one, or one per picture")
    reviewed = [each.name for each in policies if each.filters or each.prompt_filters or each.marks]
    if reviewed:
        raise GuidanceError(
            f"guard() reviews and marks nothing, and policy '{reviewed[0]}' names filters or marks; use SafetyEngine, or "
            f"policy.replace(filters=(), prompt_filters=(), marks=())"
        )
    if takes_guider(pipe):
        from sldcore.modular.guarding import (
            guarding,  # what diffusers calls experimental is imported where it is used
        )

        with guarding(pipe, policies, step_hooks) as modular:
            yield modular
        return
    family = family_of(pipe)
    session = Session(pipe, family, ConceptEncoder(pipe, family), policies, step_hooks, strict=True)
    session.concepts(family.options_of_call(pipe, {}))
    with session.active():
        yield session
