"""The models of a worker: each loaded once, with one engine, and what may be asked of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Final

from sldcore.errors import ConfigurationError, listed
from sldcore.filters.base import PictureContext
from sldcore.filters.chain import Chain
from sldcore.loading import PLAYGROUND, load_pipeline
from sldcore.policy import SafetyPolicy
from sldcore.provenance import library_versions
from sldcore.service.hosting.hosted_engine import HostedEngine
from sldcore.service.jobs import Shape
from sldcore.service.settings import ModelSettings
from sldcore.session import check_windows

logger = logging.getLogger("sldcore.service")

PLAYGROUND_GUIDANCE: Final = 4.0
TRIAL_STEPS: Final = 2
FACTS: Final = ("model_class", "scheduler", "device", "dtype", "versions")
"""What is taken from an engine's provenance: nothing that a user wrote, and no place of this machine."""


class HostedModel:
    """One model with its engine.

    Args:
        name: what clients call it.
        settings: the operator's.
        chain: where filters are kept; the models of a worker share them.

    Raises:
        ConfigurationError: it cannot be had, makes no pictures, or has sizes that make no sense.
    """

    def __init__(self, name: str, settings: ModelSettings, chain: Chain) -> None:
        self.name, self.settings = name, settings
        pipe = _loaded(settings)
        self.engine = HostedEngine(pipe, chain)
        self._guidance_scale = self._own_guidance_scale()
        if self.engine.family.frames(pipe, {}) is not None:
            raise ConfigurationError(
                f"model '{name}' makes videos ({type(pipe).__name__}), and the service makes pictures"
            )
        self.sizes = self._sizes()

    def arguments(self, shape: Shape) -> dict[str, Any]:
        """The pipeline's own arguments for pictures of a shape."""
        family = self.engine.family
        scale = self._guidance_scale if shape.guidance_scale is None else shape.guidance_scale
        return {
            "num_inference_steps": shape.steps,
            "width": shape.width,
            "height": shape.height,
            **({} if scale is None else {family.guidance_argument: scale}),
            **({"negative_prompt": ""} if family.needs_negative_prompt else {}),
        }

    def facts(self, provenance: Mapping[str, Any], policy: SafetyPolicy) -> dict[str, Any]:
        """Where a picture came from, of an engine's provenance."""
        return {
            "model": self.name,
            **{name: provenance[name] for name in FACTS},
            "providers": dict(provenance["providers"][policy.digest]),
        }

    def facts_of_review(self, policy: SafetyPolicy) -> dict[str, Any]:
        """What reviewed."""
        return {
            "model": self.name,
            "versions": library_versions(),
            "providers": self.engine.providers(policy),
        }

    def warm_up(self, policies: Sequence[SafetyPolicy]) -> None:
        """Make what the policies name, encode their concepts, draw one picture, and let the filters look at it.

        Raises:
            ConfigurationError: something cannot be had, or the model makes no picture.
        """
        self.engine.prepare(policies)
        for policy in policies:
            try:
                check_windows(self.engine.pipe, self.engine.family, [policy], self.settings.steps)
            except ConfigurationError as problem:
                logger.warning(
                    "policy '%s' cannot act in the %d steps that model '%s' makes by default: %s",
                    policy.name, self.settings.steps, self.name, problem,
                )  # fmt: skip
        self._try(policies)

    def _try(self, policies: Sequence[SafetyPolicy]) -> None:
        width, height = self.sizes[0]
        arguments = self.arguments(Shape(self.name, width, height, TRIAL_STEPS, None))
        try:
            (picture,) = self.engine.generate("a picture", policies=["off"], **arguments).images
        except Exception as problem:
            raise ConfigurationError(
                f"model '{self.name}' ({type(self.engine.pipe).__name__}) makes no picture of {width} x {height} from a prompt "
                f"alone: {type(problem).__name__}: {problem}"
            ) from problem
        for policy in policies:
            (found,) = self.engine.review([picture], [PictureContext("", 0, policy)])
            for failure in found.failures:
                logger.warning(
                    "policy '%s': %s fails, and what it cannot review is withheld: %s",
                    policy.name, failure.source, failure.error,
                )  # fmt: skip

    def _own_guidance_scale(self) -> float | None:
        """The scale where a request gives none; None leaves it to the pipeline.

        Raises:
            ConfigurationError: the pipeline would do without guidance.
        """
        scale = self.settings.guidance_scale
        if scale is None and self.settings.source == PLAYGROUND:
            return PLAYGROUND_GUIDANCE
        call = getattr(self.engine.pipe, "plain_call", type(self.engine.pipe).__call__)
        parameter = signature(call).parameters.get(self.engine.family.guidance_argument)
        default = parameter.default if parameter is not None else None
        if scale is None and isinstance(default, int | float) and default <= 1:
            raise ConfigurationError(
                f"model '{self.name}' draws without classifier-free guidance, and safety guidance cannot act without it; set "
                f"its guidance_scale to more than 1"
            )
        return scale

    def _sizes(self) -> list[tuple[int, int]]:
        if not self.settings.sizes:
            height, width = self.engine.family.picture_size(self.engine.pipe, {})
            return [(width, height)]
        return [size_of(text, self.name) for text in self.settings.sizes]


class HostedModels:
    """The models of a worker by name, loaded when they are first asked for."""

    def __init__(self, settings: Mapping[str, ModelSettings]) -> None:
        self._settings = dict(settings)
        self._loaded: dict[str, HostedModel] = {}
        self._chain = Chain()

    def of(self, name: str) -> HostedModel:
        """A model.

        Raises:
            ConfigurationError: there is none of that name, or it cannot be had.
        """
        if name not in self._settings:
            raise ConfigurationError(f"there is no model '{name}' (available: {listed(self._settings)})")
        if name not in self._loaded:
            self._loaded[name] = HostedModel(name, self._settings[name], self._chain)
        return self._loaded[name]

    def all(self) -> list[HostedModel]:
        """All models, in the order of the settings.

        Raises:
            ConfigurationError: one cannot be had.
        """
        return [self.of(name) for name in self._settings]


def size_of(text: str, model: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` as numbers.

    Raises:
        ConfigurationError: it is none.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ConfigurationError(f"model '{model}': '{text}' is no size; write WIDTHxHEIGHT, such as 512x512")
    return int(width), int(height)


def _loaded(settings: ModelSettings) -> Any:
    """The pipeline, without bars and remarks of the libraries: diffusers' quote what a prompt is cut to."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging_of in (diffusers_logging, transformers_logging):
        logging_of.set_verbosity_error()
        logging_of.disable_progress_bar()
    pipe = load_pipeline(settings.source, device=settings.device, dtype=settings.dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe
