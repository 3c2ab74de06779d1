"""Safety guidance for Modular Diffusers: a guider around another one, whose conditional prediction it makes safe.

    e_p' = e_p - gamma        with the predictions for concepts as further batches of the guider
    pred = base(e_p', e_u, ...)   whatever the base guider makes of its predictions

The base guider's own batches stay as they are, and come first; batches for concepts are added only at steps where the policy's
method needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

from sldcore.errors import ConfigurationError, GuidanceError
from sldcore.guidance.base import StepHook
from sldcore.modular import api
from sldcore.modular.api import Batch, Denoiser
from sldcore.modular.given import Policies, policies_of, require_guidance_only
from sldcore.modular.rows import Slot, batch_of, predictions_of, text_fields, with_texts
from sldcore.modular.runs import CONCEPT, Runs
from sldcore.run import StepPlan
from sldcore.types import Predictions, Trace

DEGRADED: Final = ("AutoGuidance",)
"""Guiders whose unconditional prediction comes from a weakened denoiser: no measure of what a concept adds."""


class SafetyGuider(api.BaseGuidance):  # type: ignore[misc]
    """A guider that steers away from a policy's concepts and leaves the rest to the guider that it is put around.

    Make it with :meth:`for_pipeline`, and give it to the pipeline with ``pipe.update_components(guider=guider)``; or let
    :func:`sldcore.guard` do both, and undo it. Nothing reviews the pictures, so a failure raises.

    Where the base guider makes no unconditional prediction at a step because of its own ``start`` and ``stop``, the policy
    still acts as it says: the unconditional prediction is then evaluated for the safety term alone. Where the base guider never
    makes one (disabled, scale 1), a policy that guides is an error.

    Args:
        policy: a policy, the name of a preset, or one per picture of a call.
        base: the guider that combines the predictions, classifier-free guidance by default.
    """

    _input_predictions = [api.COND, api.UNCOND, CONCEPT]  # noqa: RUF012

    def __init__(self, policy: Policies, base: Any = None) -> None:
        super().__init__()
        self._base = _guider(base)
        api.require_known(type(self._base))
        self._policies = policies_of(policy)
        self._runs: Runs | None = None
        self.set_idle()
        self.register_to_config(
            policy=[each.dump() for each in self._policies], base=api.to_config(self._base)
        )

    @classmethod
    def for_pipeline(
        cls,
        pipe: Any,
        policy: Policies,
        base: Any = None,
        step_hooks: Sequence[StepHook] = (),
        **text_options: Any,
    ) -> Self:
        """A guider for ``pipe``, with the policy's concepts encoded by the pipeline's own text blocks.

        Args:
            pipe: a modular pipeline with text encoder and guider.
            policy: a policy, the name of a preset, or one per picture of a call.
            base: the guider to put this one around; by default the one that the pipeline has.
            step_hooks: objects that see, and may edit, every step.
            text_options: what calls of the pipeline will say about how text is encoded, such as ``clip_skip``; concepts must
                be encoded as prompts are. (:func:`sldcore.guard` reads them from the call.)

        Raises:
            UnsupportedPipelineError: the pipeline has no guider, or no text block.
            ConceptError: a concept cannot be had, or has a term that is too long.
        """
        return cls(policy, base if base is not None else _base_of(pipe)).bind(
            pipe, step_hooks, **text_options
        )

    def bind(self, pipe: Any, step_hooks: Sequence[StepHook] = (), **text_options: Any) -> Self:
        """Guide ``pipe`` from now on; for a guider that was loaded, whose concepts are not saved with it.

        Raises:
            UnsupportedPipelineError: as :meth:`for_pipeline`.
            ConceptError: as :meth:`for_pipeline`.
            GuidanceError: the policy names a scheduler or filters, which a guider cannot serve.
        """
        require_guidance_only(self._policies)
        runs = Runs(pipe, self._policies, step_hooks)
        if text_options or not runs.texts.needs_a_call():
            runs.encode(runs.texts.options(text_options))
        return self.joined(runs)

    def joined(self, runs: Runs) -> Self:
        """Take part in ``runs``."""
        self._runs = runs
        return self

    def beside(self, base: Any) -> SafetyGuider:
        """A second guider of the same run, for pipelines that go from one guider to another (Wan 2.2)."""
        return type(self)(self._policies, base).joined(self._bound())

    def new(self, **kwargs: Any) -> SafetyGuider:
        """A copy, with another ``policy`` or ``base``; it guides the same pipeline."""
        given = {"policy": self._policies, "base": api.from_config(self.config["base"]), **kwargs}
        twin = type(self)(**given)
        return twin if self._runs is None else twin.bind(self._runs.pipe)

    @property
    def base(self) -> Any:
        """The guider that this one is put around."""
        return self._base

    @property
    def trace(self) -> Trace:
        """The trace of the latest call, moved to the host.

        Raises:
            SafetyFailure: there was none with classifier-free guidance.
        """
        return self._bound().trace

    @property
    def guidance_scale(self) -> float:
        """The base guider's."""
        return float(self._base.guidance_scale)

    @guidance_scale.setter
    def guidance_scale(self, value: float) -> None:
        self._base.guidance_scale = value

    # What a denoising block calls, in this order.

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Begin a step."""
        super().set_state(step, num_inference_steps, timestep)
        self._base.set_state(step, num_inference_steps, timestep)
        self.set_idle()

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Batch]:
        """The base guider's batches, and those for the concepts that are needed."""
        names = {field: field for field, value in data.items() if isinstance(value, tuple)}
        return self._prepare(lambda guider: guider.prepare_inputs(data), names)

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Batch]:
        """As :meth:`prepare_inputs`."""
        names = {field: value[0] for field, value in input_fields.items() if isinstance(value, tuple)}
        return self._prepare(lambda guider: guider.prepare_inputs_from_block_state(data, input_fields), names)

    def prepare_models(self, denoiser: Denoiser) -> None:
        """Before each batch."""
        self._release()
        self._count_prepared += 1
        if self._count_prepared <= self._own:
            self._base.prepare_models(denoiser)
        if self._step_plan is not None and self._count_prepared == 1:
            self._handle = self._bound().layout.watch(denoiser)

    def cleanup_models(self, denoiser: Denoiser) -> None:
        """After each batch."""
        self._release()
        if self._count_prepared <= self._own:
            self._base.cleanup_models(denoiser)

    def __call__(self, data: list[Batch]) -> Any:
        """What the base guider makes of its predictions, the conditional one made safe."""
        own = data[: self._own]
        if self._step_plan is not None:
            self._make_safe(data, self._step_plan)
        elif self._runs is not None:
            self._runs.end_if_finished()
        return self._base(own)

    @property
    def is_conditional(self) -> bool:
        """Whether the batch being evaluated is one with the prompt, or a concept in its place."""
        if self._count_prepared <= self._own:
            return bool(self._base.is_conditional)
        return bool(self._count_prepared > self._first_slot)

    @property
    def num_conditions(self) -> int:
        """Predictions that the base guider makes where it guides; more than one if negative prompts are needed."""
        return int(api.everywhere(self._base).num_conditions)

    @property
    def _enabled(self) -> bool:
        return bool(self._base._enabled)

    @_enabled.setter
    def _enabled(self, value: bool) -> None:
        if "_base" in vars(self):  # the base guider is not there yet while this one is being made
            self._base._enabled = value

    def set_idle(self) -> None:
        """No step is under way, whatever was cut off."""
        self._step_plan: StepPlan | None = None
        self._own = self._first_slot = (
            0  # batches of the base guider, and all that come before those for concepts
        )
        self._uncond_at = 0
        self._slots: Sequence[Slot] = ()
        self._release()

    def _release(self) -> None:
        """Stop watching the denoiser."""
        handle = self.__dict__.pop("_handle", None)
        if handle is not None:
            handle.remove()

    def _prepare(self, prepare: Callable[[Any], list[Batch]], names: Mapping[str, str]) -> list[Batch]:
        own = list(prepare(self._base))
        self._own = self._first_slot = len(own)
        measured = [] if type(self._base).__name__ in DEGRADED else own
        aside = (
            [] if _named(measured, api.UNCOND) else _named(prepare(api.everywhere(self._base)), api.UNCOND)
        )
        uncond = [*_named(measured, api.UNCOND), *aside]
        if not self._acting() and not (self._runs and uncond):
            return own
        runs = self._bound()
        if not uncond:
            raise GuidanceError(self._cannot_act(runs))
        return self._with_concepts(runs, own, aside, api.fields(uncond[0]), names)

    def _with_concepts(
        self,
        runs: Runs,
        own: list[Batch],
        aside: list[Batch],
        uncond: Mapping[str, Any],
        names: Mapping[str, str],
    ) -> list[Batch]:
        """The base guider's batches, one for an unconditional prediction that it does not make, those for concepts."""
        cond = api.fields(_named(own, api.COND)[0])
        arguments = runs.concepts.arguments
        found = text_fields(cond, uncond, names, arguments[0]) if arguments else {}
        batch, device = batch_of(cond, found or names)
        scale = getattr(self._base, "guidance_scale", None)
        plan = runs.begin(self, batch, device, len(own), scale)
        if not runs.changes(plan):
            return own
        self._step_plan = plan
        self._slots = runs.slots(plan.rows, batch, device)
        self._first_slot = len(own) + len(aside)
        self._uncond_at = len(own) if aside else [api.identifier(each) for each in own].index(api.UNCOND)
        concepts = [
            api.new_batch(with_texts(cond, found, slot.texts), runs.name_of(slot)) for slot in self._slots
        ]
        return [*own, *aside, *concepts]

    def _make_safe(self, data: list[Batch], plan: StepPlan) -> None:
        """Put c' in the place of the base guider's conditional prediction."""
        runs, uncond = self._bound(), data[self._uncond_at]
        cond = _named(data[: self._own], api.COND)[0]
        made = [each.noise_pred for each in data[self._first_slot :]]
        concepts = predictions_of(self._slots, made) if made else cond.noise_pred[:0]
        given = Predictions(uncond.noise_pred, cond.noise_pred, concepts, plan.rows, runs.layout.latents)
        uncond.noise_pred, cond.noise_pred = runs.finish(plan, given)
        runs.layout.forget()

    def _acting(self) -> str:
        """Name of a policy that has to act, empty if none has."""
        if self._runs is not None:
            return self._runs.acting
        return next((each.name for each in self._policies if each.guides or each.step_hooks), "")

    def _bound(self) -> Runs:
        if self._runs is None:
            raise GuidanceError(
                f"this SafetyGuider knows no pipeline, so its policy '{self._acting() or 'off'}' has no encoded concepts; they "
                f"are not saved with it. Make it with SafetyGuider.for_pipeline(pipe, policy), or call guider.bind(pipe) on one "
                f"that was loaded"
            )
        return self._runs

    def _cannot_act(self, runs: Runs) -> str:
        return (
            f"policy '{runs.acting}' cannot act: {type(self._base).__name__} makes no unconditional prediction (it is "
            f"disabled, or its guidance_scale turns it off, or the pipeline is distilled and uses none). Use a guidance_scale "
            f"other than 1 and an enabled guider, or the policy 'off' without step hooks"
        )


def _named(batches: Sequence[Batch], name: str) -> list[Batch]:
    return [batch for batch in batches if api.identifier(batch) == name]


def _guider(base: Any) -> Any:
    """A base guider, or the one of a saved configuration.

    Raises:
        ConfigurationError: it is none, or a SafetyGuider itself.
    """
    made = api.default_guider() if base is None else base
    made = api.from_config(made) if isinstance(made, Mapping) else made
    if isinstance(made, SafetyGuider) or not isinstance(made, api.BaseGuidance):
        raise ConfigurationError(
            f"base is a {type(made).__name__}; it must be a guider of diffusers, such as ClassifierFreeGuidance, and no "
            f"SafetyGuider"
        )
    return made


def _base_of(pipe: Any) -> Any:
    """The guider that a pipeline has, out of a SafetyGuider if it is in one."""
    own = getattr(pipe, "guider", None)
    return own.base if isinstance(own, SafetyGuider) else own
