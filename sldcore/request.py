"""What a call of the engine asks for: samples with their seeds and policies, and the pipeline's own arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

import numpy as np
import torch

from sldcore.errors import GuidanceError
from sldcore.policy import SafetyPolicy

OUTPUT_TYPES: Final = ("pil", "np")
TEXTS: Final = re.compile(r"(negative_)?prompt(_[0-9])?")
"""Arguments that are texts, one per prompt or one for all."""
_PICTURES: Final = r"(|mask_|control_|original_|depth_|init_)(image|mask|video|map)s?"
PER_PROMPT_LIST: Final = re.compile(rf"{TEXTS.pattern}|{_PICTURES}|conditioning_frames")
"""Arguments that are one entry per prompt, or per picture, if they are lists of that length; others belong to the call."""
PER_PROMPT_TENSOR: Final = re.compile(
    rf"latents|\w*(prompt_embeds|embeds_mask|attention_mask)\w*|{_PICTURES}"
)
"""The same of tensors and arrays."""


PER_PROMPT: Final = ("num_images_per_prompt", "num_videos_per_prompt")
"""What diffusers' pipelines call the number of pictures per prompt."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture to make."""

    prompt: str
    seed: int | None
    policy: SafetyPolicy


@dataclass(frozen=True, slots=True)
class Request:
    """A checked call: its samples in the pipeline's order, all of a prompt together, and the pipeline's arguments.

    ``arguments`` are without prompt, generator and number of images, which :meth:`call` adds.
    """

    prompt: str | list[str] | None
    samples: tuple[Sample, ...]
    num_images: int
    arguments: Mapping[str, Any]
    per_prompt: str | None = PER_PROMPT[0]
    """The pipeline's argument that says how many pictures to make of each prompt; None if it has none."""

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[str] | None,
        seed: int | Sequence[int] | None,
        num_images: int,
        policies: Sequence[SafetyPolicy],
        arguments: Mapping[str, Any],
        per_prompt: str | None = PER_PROMPT[0],
    ) -> Request:
        """Check a call; ``policies`` are one per prompt.

        Raises:
            GuidanceError: it cannot be carried out as it stands.
        """
        if num_images < 1:
            raise GuidanceError(f"num_images is {num_images}; ask for at least one picture per prompt")
        for name, instead in (*((each, "num_images") for each in PER_PROMPT), ("return_dict", "")):
            if name in arguments:
                use = f"use {instead} instead" if instead else "the engine always returns a Result"
                raise GuidanceError(f"{name} is not an argument of the engine; {use}")
        prompts = prompts_of(prompt, arguments)
        if len(policies) != len(prompts):
            raise GuidanceError(f"{len(policies)} policies for {len(prompts)} prompts; give one per prompt")
        seeds = seeds_of(seed, len(prompts), num_images)
        if seed is not None and "generator" in arguments:
            raise GuidanceError("give either seed or generator; pass seed=None to use your own generator")
        samples = tuple(
            Sample(text, seeds[number * num_images + image], policy)
            for number, (text, policy) in enumerate(zip(prompts, policies, strict=True))
            for image in range(num_images)
        )
        whole = prompt if prompt is None or isinstance(prompt, str) else list(prompt)
        request = cls(whole, samples, num_images, arguments, per_prompt)
        repeats = (
            num_images > 1 and per_prompt != PER_PROMPT[0]
        )  # many video pipelines make one per prompt, whatever is asked
        return request.part(range(len(samples)), samples) if repeats else request

    def call(self) -> dict[str, Any]:
        """The pipeline's arguments for all samples."""
        call = dict(self.arguments)
        if self.prompt is not None:
            call["prompt"] = self.prompt
        if isinstance(self.prompt, list):  # some pipelines want as many texts for each of their encoders
            texts = {name: value for name, value in call.items() if TEXTS.fullmatch(name)}
            call |= {name: [text] * len(self.prompt) for name, text in texts.items() if isinstance(text, str)}
        if self.per_prompt is not None:
            call[self.per_prompt] = self.num_images
        seeds = [sample.seed for sample in self.samples if sample.seed is not None]
        if seeds:
            call["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        return call

    def part(self, chosen: Sequence[int], samples: Sequence[Sample]) -> Request:
        """A request for some of the pictures, each as a prompt of its own, with other seeds or policies.

        Lists with one entry per prompt or per picture are taken apart, prompt embeddings too; all else stays as it is.
        """
        prompts = len(self.samples) // self.num_images
        own = dict(self.arguments)
        for name, value in self.arguments.items():
            if isinstance(value, list | tuple) and PER_PROMPT_LIST.fullmatch(name):
                if name == "conditioning_frames" and not all(isinstance(each, list) for each in value):
                    continue  # the frames of one video
                if len(value) == len(self.samples) and self.num_images > 1:
                    own[name] = [value[index] for index in chosen]
                elif len(value) == prompts and prompts > 1:
                    own[name] = [value[index // self.num_images] for index in chosen]
            elif isinstance(value, torch.Tensor | np.ndarray) and PER_PROMPT_TENSOR.fullmatch(name):
                if re.fullmatch(_PICTURES, name) and "mask" not in name and value.ndim < 4:
                    continue  # one picture
                if len(value) == len(self.samples):
                    own[name] = value[list(chosen)]
                elif len(value) == prompts:
                    own[name] = value[[index // self.num_images for index in chosen]]
        texts = None if self.prompt is None else [sample.prompt for sample in samples]
        return Request(texts, tuple(samples), 1, own, self.per_prompt)


def per_prompt_argument(call: Any) -> str | None:
    """The name of the argument of a pipeline that says how many pictures to make of each prompt."""
    taken = signature(call).parameters
    return next((name for name in PER_PROMPT if name in taken), None)


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


def seeds_of(seed: int | Sequence[int] | None, prompts: int, num_images: int) -> list[int | None]:
    """One seed per picture, in the pipeline's order.

    Raises:
        GuidanceError: another number of seeds than prompts or pictures.
    """
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
