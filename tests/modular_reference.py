"""Safety guidance in modular pipelines, written straight: a guider that evaluates a concept at every step.

The concept's texts are what the pipeline gives its guider when it is called with the concept as its prompt. The equations are
written out anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance
from diffusers.modular_pipelines.modular_pipeline import BlockState
from tiny_modular import Tiny
from torch import Tensor

from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy, Window

KNIGHT = "a red knight on a meadow"
CAT = "a blue cat in the snow"
CONCEPT = "blood, weapons"
SLD = {"scale": 20.0, "threshold": 10.0, "momentum_scale": 0.3, "momentum_beta": 0.4}
"""Acts on every element, so that nothing hangs on a single comparison of floats."""


def sld(start: float = 0, concept: str = CONCEPT, **options: float) -> SafetyPolicy:
    """A policy that steers away from one concept."""
    spec = GuidanceSpec(method="sld", options={**SLD, **options}, window=Window(start=start))
    return SafetyPolicy(name="test", guidance=spec, concepts=(ConceptUse(text=concept),))


def concept_inputs(tiny: Tiny, concept: str = CONCEPT, **more: Any) -> dict[str, Any]:
    """The text inputs that the guider is given for a concept as a prompt, one row each."""
    pipe, seen = tiny.build(), []

    class Recorder(ClassifierFreeGuidance):
        def __call__(self, data: Any) -> Any:
            seen.append(data[0])
            return super().__call__(data)

    pipe.guider = Recorder(guidance_scale=5.0)
    if hasattr(pipe, "guider_2"):
        pipe.guider_2 = Recorder(guidance_scale=3.0)
    tiny.run(pipe, [concept], steps=2, **more)
    return {name: getattr(seen[0], name) for name in tiny.texts}


class Straight:
    """Shared by the guiders of one pipeline: momentum, step factors, and the concept."""

    def __init__(
        self,
        pipe: Any,
        texts: Mapping[str, Any],
        start: int = 0,
        factor: Callable[[Any, int], float] | None = None,
        options: Mapping[str, float] = SLD,
    ) -> None:
        self.pipe, self.texts, self.start, self.options = pipe, texts, start, options
        self.factor = factor or factor_of
        self.momentum: Any = 0.0

    def around(self, base: Any) -> Any:
        """A guider that does what ``base`` does with a safe conditional prediction."""
        own = copy.copy(base)
        kind, straight = type(base), self

        class Guider(kind):  # type: ignore[misc, valid-type]
            def prepare_inputs(self, data: Any) -> Any:
                return straight.added(super().prepare_inputs(data))

            def prepare_inputs_from_block_state(self, data: Any, fields: Any) -> Any:
                return straight.added(super().prepare_inputs_from_block_state(data, fields))

            def __call__(self, data: Any) -> Any:
                *own, concept = data
                named = {batch.__guidance_identifier__: batch for batch in own}
                cond = named["pred_cond"]
                cond.noise_pred = straight.safe(
                    self._step, named["pred_uncond"].noise_pred, cond.noise_pred, concept.noise_pred
                )
                return super().__call__(own)

        own.__class__ = Guider
        return own

    def added(self, batches: Sequence[Any]) -> list[Any]:
        inputs = {**batches[0].as_dict(), **self.concept(batches[0])}
        return [*batches, BlockState(**{**inputs, "__guidance_identifier__": "reference"})]

    def concept(self, cond: Any) -> dict[str, Any]:
        """The concept's texts, as many as the conditional batch has."""
        return {name: self.like(value, getattr(cond, name)) for name, value in self.texts.items()}

    def like(self, concept: Any, prompt: Any) -> Any:
        if isinstance(prompt, list):
            return [concept[0]] * len(prompt)
        return concept.to(prompt.dtype).expand(prompt.shape[0], *concept.shape[1:]).contiguous()

    def safe(self, step: int, uncond: Tensor, cond: Tensor, concept: Tensor) -> Tensor:
        """Equations 3 to 8 of the paper, on differences of noise."""
        factor, given = self.factor(self.pipe, step), self.options
        toward, away = factor * (cond - concept), factor * (concept - uncond)
        mu = torch.where(toward < given["threshold"], (toward.abs() * given["scale"]).clamp(max=1), 0.0)
        gamma = mu * away + given["momentum_scale"] * self.momentum
        self.momentum = given["momentum_beta"] * self.momentum + (1 - given["momentum_beta"]) * gamma
        acts = (
            step >= self.start and factor != 0
        )  # at pure noise a prediction of the flow says nothing about it
        return cond - gamma / factor if acts else cond


def factor_of(pipe: Any, step: int) -> float:
    """What turns a difference of predictions into one of noise, at a denoiser call of a whole run."""
    scheduler = pipe.scheduler
    if (
        "FlowMatch" in type(scheduler).__name__
        or scheduler.config.get("prediction_type") == "flow_prediction"
    ):
        return 1 - float(scheduler.sigmas[step])
    return 1.0
