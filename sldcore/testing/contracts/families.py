"""The contract of families."""

# ruff: noqa: D102  (the name of a test is its documentation)

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import numpy as np
import torch

from sldcore.catalogue import using
from sldcore.contributions import FamilyKind
from sldcore.denoiser import HOOK_NAME, forward_signature
from sldcore.families.base import NO_OPTIONS, Family
from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy
from sldcore.session import guard
from sldcore.testing.contracts.base import Contract, does_not_apply, require
from sldcore.testing.contracts.tensors import require_close, require_equal
from sldcore.testing.fakes import FakePipeline
from sldcore.testing.sources import catalogue_with

ATTRIBUTES: Final[dict[str, type]] = {
    "name": str,
    "latents_argument": str,
    "text_arguments": tuple,
    "listed_arguments": tuple,
    "shared_arguments": tuple,
    "apart": bool,
    "guidance_argument": str,
    "needs_negative_prompt": bool,
}
TEXTS: Final = ("blood", "a red knight on a meadow", "")


class FamilyContract(Contract):
    """For :class:`sldcore.contributions.FamilyKind`.

    Attributes:
        pipeline: a pipeline of the family, small, or a method that returns one. Left out, families that know
            ``StableDiffusionPipeline`` are tested with a fake one; for others the tests that need one are skipped.
        arguments: how the pipeline is called, beside the prompt and the generator.
    """

    kind = FamilyKind
    pipeline: Any = None
    arguments: ClassVar[dict[str, Any]] = {
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "output_type": "np",
    }
    prompt: ClassVar[str] = "a red knight on a meadow"

    def make(self) -> Family:
        """A new family."""
        made: Family = self.subject.create()
        return made

    def use(self, made: Family) -> int:
        """Encode one text, if there is a pipeline."""
        if self.pipeline is not None or self._knows_the_fake:
            made.encode(self.pipe(), TEXTS[:1], NO_OPTIONS)
        return 1

    @property
    def _knows_the_fake(self) -> bool:
        return "StableDiffusionPipeline" in self.subject.pipelines

    def pipe(self) -> Any:
        """The pipeline to test with."""
        if self.pipeline is not None:
            own = inspect.ismethod(self.pipeline) or inspect.isfunction(self.pipeline)
            return self.pipeline() if own else self.pipeline
        if not self._knows_the_fake:
            raise does_not_apply("no pipeline of this family is given")
        return FakePipeline()

    def call(self, pipe: Any, seed: int = 0) -> Any:
        """Call the pipeline: pictures [B, H, W, C], or the frames of videos."""
        generator = torch.Generator().manual_seed(seed)
        output = pipe(prompt=self.prompt, generator=generator, **self.arguments)
        made = getattr(output, "images", None)
        return np.asarray(output.frames if made is None else made)

    def policy(self) -> SafetyPolicy:
        """A policy that guides at every step."""
        spec = GuidanceSpec(method="sld", options={"scale": 5000, "threshold": 1.0})
        return SafetyPolicy(guidance=spec, concepts=(ConceptUse(text="blood"),))

    @contextmanager
    def guarded(self, pipe: Any) -> Iterator[Any]:
        """The pipeline under guard, known to no family but this one."""
        with using(catalogue_with(self.subject)), guard(pipe, self.policy()) as session:
            yield session

    def test_it_has_the_attributes_and_methods_of_a_family(self) -> None:
        made = self.make()
        for name, kind in ATTRIBUTES.items():
            value = getattr(made, name, None)
            require(isinstance(value, kind), f"{name} is {value!r}, not a {kind.__name__}")
        for name in _methods():
            require(callable(getattr(made, name, None)), f"the method {name}() is missing")

    def test_it_calls_itself_what_it_is_called(self) -> None:
        name = self.make().name
        require(
            name == self.subject.name,
            f"the family is called '{name}', and contributed as '{self.subject.name}'",
        )

    def test_it_names_classes_of_pipelines(self) -> None:
        names = self.subject.pipelines
        good = (
            isinstance(names, tuple)
            and names
            and all(isinstance(name, str) and name.isidentifier() for name in names)
        )
        require(good, f"pipelines must be names of classes, got {names!r}")

    def test_the_denoiser_takes_the_arguments_that_it_names(self) -> None:
        made, pipe = self.make(), self.pipe()
        denoisers = made.denoisers(pipe)
        require(bool(denoisers), "denoisers() finds no denoiser in the pipeline")
        for denoiser in denoisers:
            kind = type(denoiser).__name__
            require(isinstance(denoiser, torch.nn.Module), f"the denoiser is {kind}, not a module")
            parameters = forward_signature(denoiser).parameters
            names = [name.partition(".")[0] for name in (made.latents_argument, *made.text_arguments)]
            missing = [name for name in names if name not in parameters]
            require(not missing, f"{kind}.forward() does not take {', '.join(missing)}")

    def test_tokens_are_counted_with_begin_and_end_and_nothing_cut_off(self) -> None:
        made, pipe = self.make(), self.pipe()
        window, empty = made.window(pipe, NO_OPTIONS), made.count_tokens(pipe, "")
        require(0 <= empty < window, f"an empty text takes {empty} tokens of a window of {window}")
        counts = [made.count_tokens(pipe, ", ".join(["a knight"] * times)) for times in (1, 2, window)]
        require(empty < counts[0] < counts[1], f"longer texts do not take more tokens: {[empty, *counts]}")
        require(
            counts[2] > window,
            f"a text of {2 * window} words takes {counts[2]} tokens: it was cut to the window",
        )

    def test_texts_are_encoded_to_one_row_each(self) -> None:
        made, pipe = self.make(), self.pipe()
        encoded = made.encode(pipe, TEXTS, NO_OPTIONS)
        require(len(encoded) == len(TEXTS), f"encode() gave {len(encoded)} encodings for {len(TEXTS)} texts")
        for text, each in zip(TEXTS, encoded, strict=True):
            got = set(each)
            require(
                bool(got) and got <= set(made.text_arguments),
                f"encode() gave {got}, and text_arguments are {made.text_arguments}",
            )
            for name, value in each.items():
                require(value.shape[0] == 1, f"{name} of '{text}' has {value.shape[0]} rows instead of 1")
                require(bool(value.isfinite().all()), f"{name} holds NaN or Inf")
        differs = any(not _same(encoded[0][name], encoded[1][name]) for name in encoded[0])
        require(differs, "encode() gives the same for different texts")

    def test_a_text_is_encoded_alone_as_beside_others(self) -> None:
        made, pipe = self.make(), self.pipe()
        together = made.encode(pipe, TEXTS, NO_OPTIONS)
        for number, text in enumerate(TEXTS):
            (alone,) = made.encode(pipe, [text], NO_OPTIONS)
            for name, value in alone.items():
                require_close(value, together[number][name], f"{name} of '{text}' depends on the other texts")

    def test_a_text_is_encoded_the_same_every_time(self) -> None:
        made, pipe = self.make(), self.pipe()
        before = made.encoder_state(pipe)
        one, two = (made.encode(pipe, TEXTS, NO_OPTIONS) for _ in range(2))
        for first, second in zip(one, two, strict=True):
            for name in first:
                require_equal(
                    second[name], first[name], f"{name} differs when texts are encoded a second time"
                )
        require(made.encoder_state(pipe) == before, "encoder_state() changes although nothing else did")

    def test_the_schedule_tells_every_call_and_its_noise_level(self) -> None:
        with self.guarded(pipe := self.pipe()) as session:
            self.call(pipe)
        schedule = session.run.schedule
        require(
            session.run.finished, f"{session.run.calls} calls were made and the schedule has {len(schedule)}"
        )
        levels = list(schedule.noise_levels)
        falling = levels == sorted(levels, reverse=True) and all(0 <= level <= 1 for level in levels)
        require(falling, f"noise levels do not fall within 0..1: {levels}")

    def test_a_guarded_call_is_guided(self) -> None:
        pipe = self.pipe()
        plain = self.call(pipe)
        with self.guarded(pipe) as session:
            guided = self.call(pipe)
        require(session.trace.evaluated.all(), "the concept was not evaluated at every step")
        require(not np.array_equal(plain, guided), "the picture is the same with and without guidance")

    def test_a_policy_that_is_off_changes_nothing(self) -> None:
        pipe = self.pipe()
        plain = self.call(pipe)
        with using(catalogue_with(self.subject)), guard(pipe, "off"):
            off = self.call(pipe)
        require(np.array_equal(plain, off), "the picture changes under the policy 'off'")

    def test_the_pipeline_is_afterwards_what_it_was(self) -> None:
        pipe = self.pipe()
        plain, attributes = self.call(pipe), set(vars(pipe))
        with self.guarded(pipe):
            self.call(pipe)
        registries = [getattr(each, "_diffusers_hook", None) for each in self.make().denoisers(pipe)]
        free = all(registry is None or registry.get_hook(HOOK_NAME) is None for registry in registries)
        require(free, "the denoiser is still hooked")
        require(set(vars(pipe)) == attributes, f"attributes are left behind: {set(vars(pipe)) - attributes}")
        require(np.array_equal(plain, self.call(pipe)), "the pipeline gives another picture after guard()")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.equal(other)


def _methods() -> list[str]:
    return [
        name for name, value in vars(Family).items() if inspect.isfunction(value) and not name.startswith("_")
    ]
