"""Noise schedulers by name, made from the config of the pipeline's own with diffusers' classes.

A name fits a model or it does not: DDIM knows nothing of rectified flow, PNDM nothing of zero terminal SNR. What a model was
trained with is read from its own scheduler's config, and a name that would lose any of it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Final

from sldcore.contributions import NoOptions, SchedulerKind
from sldcore.errors import PolicyError, listed

EPSILON_OR_V: Final = ("epsilon", "v_prediction")
ANY_DISCRETE: Final = (*EPSILON_OR_V, "sample")
TRAINED_WITH: Final = (
    "trained_betas",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
)
"""Settings that a model was trained with: where one is set, a class that does not take it would go wrong silently."""
COGVIDEOX: Final = "snr_shift_scale"


@dataclass(frozen=True, slots=True)
class Solver:
    """What stands behind a name: diffusers' class for each kind of model that it can sample from.

    Attributes:
        discrete: class for models with a table of alpha_bar.
        predictions: what such a model may predict.
        settings: set beside the pipeline's config, for every kind of model.
        flow: class for rectified flow.
        cogvideox: class for CogVideoX's table, which is shifted.
    """

    discrete: str | None = None
    predictions: tuple[str, ...] = ANY_DISCRETE
    settings: Mapping[str, Any] = field(default_factory=dict)
    flow: str | None = None
    cogvideox: str | None = None

    def class_for(self, config: Mapping[str, Any]) -> str | None:
        """Name of the class for the model whose scheduler has this config; None if there is none."""
        if is_flow_config(config):
            return self.flow
        if COGVIDEOX in config:
            return self.cogvideox
        return self.discrete if _prediction(config) in self.predictions else None

    @property
    def classes(self) -> str:
        """The classes, for a listing."""
        return " or ".join(dict.fromkeys(each for each in (self.discrete, self.flow) if each))


SOLVERS: Final[Mapping[str, Solver]] = {
    "ddim": Solver("DDIMScheduler", cogvideox="CogVideoXDDIMScheduler"),
    "pndm": Solver(
        "PNDMScheduler", EPSILON_OR_V, {"skip_prk_steps": True}
    ),  # as latent models are sampled: n + 1 calls
    "euler": Solver("EulerDiscreteScheduler"),
    "euler-a": Solver("EulerAncestralDiscreteScheduler", EPSILON_OR_V),
    "dpm++2m": Solver(
        "DPMSolverMultistepScheduler",
        settings={"algorithm_type": "dpmsolver++"},
        flow="DPMSolverMultistepScheduler",
    ),
    "unipc": Solver("UniPCMultistepScheduler", flow="UniPCMultistepScheduler"),
    "lms": Solver("LMSDiscreteScheduler"),
    "heun": Solver("HeunDiscreteScheduler", EPSILON_OR_V, flow="FlowMatchHeunDiscreteScheduler"),
    "flow-euler": Solver(flow="FlowMatchEulerDiscreteScheduler"),
}
"""Every name that the core has."""


def scheduler_kinds() -> list[SchedulerKind]:
    """The core's schedulers as contributions."""
    return [_kind(name, solver) for name, solver in SOLVERS.items()]


def is_flow_config(config: Mapping[str, Any]) -> bool:
    """True for the config of a rectified-flow model's scheduler."""
    return (
        config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
        or ("shift" in config and "beta_schedule" not in config and "beta_start" not in config)
    )


def prediction_of(config: Mapping[str, Any]) -> str | None:
    """What the model predicts, the same whether its scheduler's class says so in the config (UniPC) or not (FlowMatch)."""
    return "flow_prediction" if is_flow_config(config) else config.get("prediction_type")


def fitting(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names that fit the model whose scheduler has this config."""
    return tuple(name for name, solver in SOLVERS.items() if _why_not(solver, config) is None)


def make(name: str, config: Any) -> Any:
    """A scheduler from the config of the pipeline's own.

    Raises:
        PolicyError: the name does not fit the model.
    """
    import diffusers

    solver = SOLVERS[name]
    reason = _why_not(solver, config)
    if reason is not None:
        raise PolicyError(_refusal(name, reason, fitting(config)))
    cls = getattr(diffusers, str(solver.class_for(config)))
    if not is_flow_config(config):
        return cls.from_config(config, **solver.settings)
    if "sigmas" not in signature(cls.set_timesteps).parameters:
        cls = _with_levels_of_its_own(cls, name)
    return _flow_scheduler(cls, config, solver.settings)


def _kind(name: str, solver: Solver) -> SchedulerKind:
    def create(config: Any, options: NoOptions) -> Any:
        return make(name, config)

    return SchedulerKind(name=name, description=f"diffusers' {solver.classes}", create=create)


def _prediction(config: Mapping[str, Any]) -> str:
    """What the model predicts; "unknown" for EDM and trigflow, whose schedulers do not scale latents as others do."""
    if "sigma_data" in config:
        return "unknown"
    return str(config.get("prediction_type") or "epsilon")


def _why_not(solver: Solver, config: Mapping[str, Any]) -> str | None:
    """Why a solver does not fit; None if it does."""
    import diffusers

    name = solver.class_for(config)
    if name is None:
        return f"the model {_described(config)}"
    taken = signature(getattr(diffusers, name).__init__).parameters
    lost = [each for each in TRAINED_WITH if config.get(each) and each not in taken]
    if lost:
        return f"diffusers' {name} does not take {listed(lost)}, which the model was trained with"
    if config.get("use_dynamic_shifting") and config.get("time_shift_type", "exponential") != "exponential":
        return None if "Match" in name else f"diffusers' {name} shifts time exponentially, the model linearly"
    return None


def _described(config: Mapping[str, Any]) -> str:
    if is_flow_config(config):
        return "is a rectified flow"
    if COGVIDEOX in config:
        return "is a CogVideoX, whose noise schedule is its own"
    prediction = _prediction(config)
    if prediction == "unknown":
        return "has a noise schedule of its own kind (EDM or trigflow)"
    return f"predicts {prediction} and is no rectified flow"


def _refusal(name: str, reason: str, fits: tuple[str, ...]) -> str:
    others = f"Names that fit: {listed(fits)}" if fits else "No name of the core fits"
    return f"scheduler '{name}' does not fit this model: {reason}. {others}; leave 'scheduler' out for the pipeline's own"


def _flow_scheduler(cls: Any, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """The same shift under the name that each class has for it; what only pipelines read stays in the config."""
    shift = config.get("shift", config.get("flow_shift", 1.0))
    flow = {
        "shift": shift,
        "flow_shift": shift,
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
    }
    taken = signature(cls.__init__).parameters
    wanted = {key: value for key, value in {**config, **flow, **settings}.items() if key in taken}
    made = cls.from_config(wanted)
    left_over = {key: value for key, value in config.items() if key not in wanted and not key.startswith("_")}
    made.register_to_config(**left_over)
    return made


def _with_levels_of_its_own(cls: type, name: str) -> type:
    """``cls``, which cannot be given noise levels, with an error that says what to do where a pipeline gives some."""

    def set_timesteps(
        self: Any, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, **more: Any
    ) -> None:
        if sigmas is not None:
            able = [each for each in fitting(self.config) if _takes_levels(each)]
            reason = f"this pipeline chooses the noise levels, and diffusers' {cls.__name__} chooses its own"
            raise PolicyError(_refusal(name, reason, tuple(able)))
        cls.set_timesteps(self, num_inference_steps, device=device, **more)  # type: ignore[attr-defined]

    return type(cls.__name__, (cls,), {"set_timesteps": set_timesteps, "__module__": cls.__module__})


def _takes_levels(name: str) -> bool:
    """Whether a pipeline may give a solver the noise levels of a rectified flow."""
    import diffusers

    cls = getattr(diffusers, str(SOLVERS[name].flow))
    return "sigmas" in signature(cls.set_timesteps).parameters
