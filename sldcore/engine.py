"""The engine: applies policies to a diffusers pipeline and gives back only what may be shown.

resolve → encode → review of prompts → denoise → review of pictures → result
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray

from sldcore.catalogue import current, using
from sldcore.encoding import ConceptEncoder, RunConcepts
from sldcore.errors import GuidanceError, SafetyFailure
from sldcore.families import family_of
from sldcore.families.base import TextOptions
from sldcore.filters.base import PictureContext
from sldcore.filters.chain import Chain, Findings
from sldcore.filters.pipeline_checker import CheckerReview, reviewing
from sldcore.guidance.base import StepHook
from sldcore.policy import SafetyPolicy
from sldcore.provenance import library_versions
from sldcore.resolution import catalogue_for
from sldcore.session import Session, as_policy
from sldcore.tracing import Tracer
from sldcore.types import Failure, Report, Result, Schedule, Trace, Verdict

logger = logging.getLogger(__name__)

OUTPUT_TYPES: Final = ("pil", "np")


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture to make."""

    prompt: str
    seed: int | None
    policy: SafetyPolicy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pipeline call gave: pictures as the pipeline made them, and what must happen to each.

    ``pixels`` float [B, H, W, 3] in 0..1. They have not been acted upon: use :meth:`shown`.
    """

    pixels: NDArray[np.float32]
    reports: tuple[Report, ...]
    trace: Trace

    def shown(self) -> NDArray[np.float32]:
        """The pixels that may be shown: pictures that are withheld are black."""
        kept = np.array([not report.withheld for report in self.reports])
        return np.where(kept[:, None, None, None], self.pixels, np.float32(0))


class SafetyEngine:
    """Generates pictures with a diffusers pipeline under safety policies.

    Args:
        pipe: a pipeline of a supported class; it stays the caller's and is not changed between calls.
        policy: what applies where a call names no other; a policy or the name of a preset.
        step_hooks: objects that see, and may edit, every step.

    Raises:
        UnsupportedPipelineError: no family knows the pipeline.
        PolicyError: there is no preset of that name.
    """

    def __init__(self, pipe: Any, policy: SafetyPolicy | str, step_hooks: Sequence[StepHook] = ()) -> None:
        self.pipe = pipe
        self.policy = as_policy(policy)
        self._catalogue = current()
        self._family = family_of(pipe)
        self._chain = Chain()
        self._encoder = ConceptEncoder(pipe, self._family)
        self._hooks = tuple(step_hooks)
        self._call: Callable[..., Any] = getattr(pipe, "plain_call", pipe)

    def generate(
        self,
        prompt: str | Sequence[str] | None,
        seed: int | Sequence[int] | None = 0,
        num_images: int = 1,
        policies: Sequence[SafetyPolicy | str] | None = None,
        **pipeline_arguments: Any,
    ) -> Result:
        """Make ``num_images`` pictures of each prompt, in one batch.

        Args:
            prompt: one prompt or several; None with ``prompt_embeds``.
            seed: a number, from which the pictures of *every* prompt take seed, seed + 1, ... (so that a prompt gives the
                same picture alone and in a batch); one number per prompt or per picture; or None with a ``generator``
                of your own among the pipeline's arguments.
            num_images: pictures per prompt.
            policies: one policy, or name of a preset, per prompt; the engine's for all by default.
            **pipeline_arguments: passed to the pipeline (steps, guidance_scale, negative_prompt, image, ...).

        Returns:
            Pictures in the pipeline's order, all of a prompt together. A withheld picture is black; its report
            says why.

        Raises:
            ConfigurationError: the request cannot be carried out as it stands; nothing was generated.
            SessionError: the pipeline is in use by another session.
            SafetyFailure: safety failed and the policy says ``on_error: raise``.
        """
        samples = self._samples(prompt, seed, num_images, policies, pipeline_arguments)
        as_arrays = wants_arrays(pipeline_arguments.pop("output_type", "pil"))
        arguments = self._call_arguments(prompt, samples, num_images, pipeline_arguments)
        outcome = self.denoise(samples, arguments)
        shown = outcome.shown()
        images = list(shown) if as_arrays else VaeImageProcessor.numpy_to_pil(shown)
        return Result(images, outcome.reports, outcome.trace, self._provenance(samples, arguments))

    def denoise(self, samples: Sequence[Sample], arguments: Mapping[str, Any]) -> Outcome:
        """One pipeline call for ``samples`` with the pipeline's own ``arguments``, guided and reviewed."""
        policies = [sample.policy for sample in samples]
        self._require_guidance_scale(policies, arguments)
        with using(self._catalogue), using(catalogue_for(policies)):
            self._chain.prepare(dict.fromkeys(policies))
            session = Session(self.pipe, self._family, self._encoder, policies, self._hooks, strict=False)
            lora_scale = (arguments.get("cross_attention_kwargs") or {}).get("scale")
            concepts = session.concepts(TextOptions(arguments.get("clip_skip"), lora_scale))
            on_prompts = self._chain.prompts([sample.prompt for sample in samples], policies)
            with session.active(), reviewing(self.pipe) as checker:
                output = self._call(**{**arguments, "output_type": "np", "return_dict": True})
            pixels = np.asarray(output.images, dtype=np.float32)
            if len(pixels) != len(samples):
                raise SafetyFailure(
                    f"the pipeline returned {len(pixels)} pictures for {len(samples)} samples; none is shown"
                )
            failures = _failures(session, samples, pixels, checker)
            pixels = np.nan_to_num(pixels, nan=0.0, posinf=1.0, neginf=0.0)
            contexts = [PictureContext(sample.prompt, sample.seed, sample.policy) for sample in samples]
            on_pictures = self._chain.pictures(pixels, contexts, [bool(each) for each in failures])
        findings = [
            _together(prompt, picture, checker.of(index)[0], failures[index], samples[index])
            for index, (prompt, picture) in enumerate(zip(on_prompts, on_pictures, strict=True))
        ]
        reports = tuple(
            _report(index, sample, session, concepts, findings[index]) for index, sample in enumerate(samples)
        )
        return Outcome(pixels, reports, _trace(session, samples))

    def _samples(
        self,
        prompt: str | Sequence[str] | None,
        seed: int | Sequence[int] | None,
        num_images: int,
        policies: Sequence[SafetyPolicy | str] | None,
        arguments: Mapping[str, Any],
    ) -> list[Sample]:
        if num_images < 1:
            raise GuidanceError(f"num_images is {num_images}; ask for at least one picture per prompt")
        prompts = prompts_of(prompt, arguments)
        chosen = (
            [self.policy] * len(prompts) if policies is None else [as_policy(policy) for policy in policies]
        )
        if len(chosen) != len(prompts):
            raise GuidanceError(f"{len(chosen)} policies for {len(prompts)} prompts; give one per prompt")
        seeds = _seeds(seed, len(prompts), num_images)
        return [
            Sample(text, seeds[number * num_images + image], policy)
            for number, (text, policy) in enumerate(zip(prompts, chosen, strict=True))
            for image in range(num_images)
        ]

    def _call_arguments(
        self, prompt: Any, samples: Sequence[Sample], num_images: int, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        taken = {"num_images_per_prompt": "num_images", "return_dict": None}
        for name, instead in taken.items():
            if name in arguments:
                use = f"use {instead} instead" if instead else "the engine always returns a Result"
                raise GuidanceError(f"{name} is not an argument of the engine; {use}")
        call = dict(arguments)
        if prompt is not None:
            call["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        negative = call.get("negative_prompt")
        if isinstance(negative, str) and isinstance(call.get("prompt"), list):
            call["negative_prompt"] = [negative] * len(call["prompt"])
        if samples[0].seed is not None:
            if "generator" in call:
                raise GuidanceError("give either seed or generator; pass seed=None to use your own generator")
            call["generator"] = [
                torch.Generator("cpu").manual_seed(s.seed) for s in samples if s.seed is not None
            ]
        call["num_images_per_prompt"] = num_images
        return call

    def _require_guidance_scale(self, policies: Sequence[SafetyPolicy], arguments: Mapping[str, Any]) -> None:
        """Refuse at once what the hook would refuse at the first step."""
        guiding = [policy.name for policy in policies if policy.guides]
        parameter = inspect.signature(self._call).parameters.get("guidance_scale")
        scale = arguments.get("guidance_scale", parameter.default if parameter else None)
        if guiding and isinstance(scale, int | float) and scale <= 1:
            raise GuidanceError(
                f"guidance_scale is {scale:g}, which turns classifier-free guidance off, and with it policy '{guiding[0]}'. "
                f"Use guidance_scale > 1, or the policy 'off'"
            )

    def _provenance(self, samples: Sequence[Sample], arguments: Mapping[str, Any]) -> dict[str, Any]:
        denoiser = self._family.denoiser(self.pipe)
        return {
            "model": str(self.pipe.name_or_path or type(self.pipe).__name__),
            "model_class": type(self.pipe).__name__,
            "arguments": {
                name: value for name, value in arguments.items() if name != "prompt" and _is_plain(value)
            },
            "scheduler": type(self.pipe.scheduler).__name__,
            "versions": library_versions(),
            "device": str(self.pipe._execution_device),
            "dtype": str(next(denoiser.parameters()).dtype).removeprefix("torch."),
            "policies": {
                policy.digest: policy.dump() for policy in dict.fromkeys(sample.policy for sample in samples)
            },
        }


def prompts_of(prompt: str | Sequence[str] | None, arguments: Mapping[str, Any]) -> list[str]:
    """The prompts of a call as texts, empty ones where it brings embeddings.

    Raises:
        GuidanceError: there is no prompt.
    """
    if prompt is None:
        embeds = arguments.get("prompt_embeds")
        if embeds is None:
            raise GuidanceError(
                "there is no prompt; give a text, a list of texts, or prompt=None with prompt_embeds"
            )
        return [""] * int(embeds.shape[0])
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise GuidanceError("prompt must be a text or a list with at least one text")
    return prompts


def _seeds(seed: int | Sequence[int] | None, prompts: int, num_images: int) -> list[int | None]:
    """One seed per picture, in the pipeline's order."""
    if seed is None:
        return [None] * (prompts * num_images)
    if isinstance(seed, int):
        return [seed + image for _ in range(prompts) for image in range(num_images)]
    given = [int(each) for each in seed]
    if len(given) == prompts * num_images:
        return list(given)
    if len(given) == prompts:
        return [first + image for first in given for image in range(num_images)]
    raise GuidanceError(
        f"{len(given)} seeds for {prompts} prompts with {num_images} pictures each; give one number, one per prompt, or "
        f"one per picture ({prompts * num_images})"
    )


def wants_arrays(output_type: Any) -> bool:
    """True for ``np``, False for ``pil``.

    Raises:
        GuidanceError: anything else, which could not be reviewed.
    """
    if output_type not in OUTPUT_TYPES:
        raise GuidanceError(
            f"output_type '{output_type}' is not available: pictures must be decoded to be reviewed; use pil or np, or guard() "
            f"and your own call of the pipeline"
        )
    return bool(output_type == "np")


def _failures(
    session: Session, samples: Sequence[Sample], pixels: NDArray[np.float32], review: CheckerReview
) -> list[tuple[Failure, ...]]:
    """Everything that went wrong before the filters looked, per picture."""
    found: list[list[Failure]] = [[] for _ in samples]
    run = session.run
    for index, sample in enumerate(samples):
        if run is None:
            if sample.policy.guides:
                found[index].append(Failure("engine", "", "the pipeline never called the guarded denoiser"))
        else:
            found[index] += run.failures.get(index, [])
            if not run.finished and not found[index]:
                message = f"the pipeline stopped after {run.calls} of {len(run.schedule)} denoiser calls"
                found[index].append(Failure("engine", "", message))
    if run is not None:
        for index, failure in run.nonfinite().items():
            found[index].append(failure)
    for index, picture in enumerate(pixels):
        if not np.isfinite(picture).all():
            found[index].append(Failure("engine", "", "the decoded picture contains NaN or Inf"))
        found[index] += review.of(index)[1]
    return [tuple(failures) for failures in found]


def _together(
    on_prompt: Findings,
    on_picture: Findings,
    checker: tuple[Verdict, ...],
    failures: tuple[Failure, ...],
    sample: Sample,
) -> Findings:
    """All that is known of one picture; raises where its policy says so."""
    whole = Findings(
        verdicts=[*on_prompt.verdicts, *checker, *on_picture.verdicts],
        failures=[*failures, *on_prompt.failures, *on_picture.failures],
        black=on_prompt.black or on_picture.black or any(verdict.flagged for verdict in checker),
    )
    if whole.failures and sample.policy.on_error == "raise":
        first = whole.failures[0]
        raise SafetyFailure(f"{first.source}: {first.error} (policy '{sample.policy.name}')")
    return whole


def _report(
    index: int, sample: Sample, session: Session, concepts: RunConcepts, findings: Findings
) -> Report:
    report = Report(
        prompt=sample.prompt,
        seed=sample.seed,
        policy=sample.policy.name,
        policy_digest=sample.policy.digest,
        concepts=concepts.texts_of(sample.policy),
        verdicts=tuple(findings.verdicts),
        errors=tuple(findings.failures),
        rows=0 if session.run is None else session.run.rows_of(index),
    )
    if report.errors:
        logger.warning(
            "picture %d is withheld: %s: %s", index, report.errors[0].source, report.errors[0].error
        )
        return replace(report, action="block")
    if findings.black:
        return replace(report, action="black")
    return replace(report, action="flag") if report.flagged else report


def _trace(session: Session, samples: Sequence[Sample]) -> Trace:
    """The run's trace, or an empty one for a run without classifier-free guidance."""
    if session.run is not None:
        return session.run.trace
    return Tracer((), len(samples), Schedule((), (), ())).trace


def _is_plain(value: Any) -> bool:
    """True for what JSON can hold as it is: arguments that are tensors, pictures or functions are not recorded."""
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, str | int | float | bool)
