"""Steps with a call for each part: what the pipeline holds is corrected, and what cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sldcore.denoiser import DenoiserCall, forward_signature
from sldcore.encoding import ConceptRow, RunConcepts, UsedRow
from sldcore.errors import GuidanceError
from sldcore.families.base import DiffusersFamily
from sldcore.guidance.base import StepHook
from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy, Window
from sldcore.resolution import resolve_policy
from sldcore.run import GuidedRun
from sldcore.stepping import Apart, Together
from sldcore.types import Predictions, Row, Schedule, Step

STEPS = 4
SCHEDULE = Schedule((4.0, 3.0, 2.0, 1.0), (0.9, 0.7, 0.5, 0.3), (1.0,) * STEPS)
BATCH = 2


class Sequential(DiffusersFamily):
    """Called once for cond and once for uncond."""

    name = "sequential"
    apart = True
    order = ("cond", "uncond")
    needs_negative_prompt = True


class Denoiser(nn.Module):
    """Predicts something of the latents and of the text; keeps its last calls in mind."""

    def __init__(self, caching: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weights", torch.randn(3, 4, 6, generator=generator))
        self.rows: list[int] = []
        self.contexts: list[str] = []
        self.is_cache_enabled = caching
        self._context = "own"

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, sizes: list[int] | None = None
    ) -> tuple[Tensor]:
        self.rows.append(len(hidden_states))
        self.contexts.append(self._context)
        text = encoder_hidden_states.mean(1)
        scale = 1.0 if sizes is None else torch.tensor(sizes).view(-1, 1, 1)
        return (0.5 * hidden_states + scale * torch.einsum("dsc,rd->rsc", self.weights, text),)

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        self._context = name
        yield
        self._context = "own"


def policy(start: int = 0) -> SafetyPolicy:
    options = {"scale": 5000.0, "threshold": 10.0, "momentum_scale": 0.0}
    spec = GuidanceSpec(method="sld", options=options, window=Window(start=start))
    return SafetyPolicy(guidance=spec, concepts=(ConceptUse(text="blood"),))


class Loop:
    """A pipeline that calls its denoiser apart, over packed latents [B, S, C]; concepts have texts of different lengths."""

    def __init__(
        self, used: SafetyPolicy, hooks: tuple[StepHook, ...] = (), family: Any = None, **denoiser: Any
    ) -> None:
        draw = torch.Generator().manual_seed(1)
        self.family = family or Sequential()
        self.denoiser = Denoiser(**denoiser)
        self.latents = torch.randn(BATCH, 4, 6, generator=draw)
        self.cond, self.uncond = (torch.randn(BATCH, 5, 3, generator=draw) for _ in range(2))
        self.texts = [torch.randn(1, length, 3, generator=draw) for length in (2, 7)]
        rows = tuple(ConceptRow(f"own/{name}", f"own/{name}", name) for name in ("blood", "fire"))
        both = (UsedRow(0, 1.0), UsedRow(1, 1.0)) if used.guides else ()
        concepts = RunConcepts(
            rows, {used: both}, tuple({"encoder_hidden_states": text} for text in self.texts)
        )
        self.run = GuidedRun(
            SCHEDULE,
            [used] * BATCH,
            {used: resolve_policy(used)},
            concepts,
            hooks,
            False,
            torch.device("cpu"),
        )
        self.position = 0
        stepper = Apart if self.family.apart else Together
        more = (self.family.order, lambda: self.position) if self.family.apart else ()
        self.stepper: Any = stepper(self.run, concepts, self, self.family, *more)

    def part(self, text: Tensor, name: str, **more: Any) -> Tensor:
        signature = forward_signature(self.denoiser)
        call = DenoiserCall.bind(self.family, signature, (self.latents, text), more, (name,))
        output = self.stepper.call(self.denoiser, self.denoiser, call)
        prediction: Tensor = output[0]
        return prediction

    def step(self, keep: Callable[[Tensor], Tensor] = lambda held: held, **more: Any) -> Tensor:
        """Guided prediction of scale 3, normalised by the prompt's as Qwen-Image does it."""
        cond = keep(self.part(self.cond, "cond", **more))
        uncond = self.part(self.uncond, "uncond", **more)
        self.position += 1
        combined = uncond + 3 * (cond - uncond)
        return combined * cond.norm() / combined.norm()


def expected(loop: Loop, scale: float = 1.0) -> Tensor:
    """The first step by hand: sum of both concepts' terms with mu = 1."""
    cond, uncond = (0.5 * loop.latents + scale * _text(loop, text) for text in (loop.cond, loop.uncond))
    terms = [
        0.5 * loop.latents + scale * _text(loop, text.expand(BATCH, -1, -1)) - uncond for text in loop.texts
    ]
    safe = cond - sum(terms)
    combined = uncond + 3 * (safe - uncond)
    return combined * safe.norm() / combined.norm()


def _text(loop: Loop, text: Tensor) -> Tensor:
    return torch.einsum("dsc,rd->rsc", loop.denoiser.weights, text.mean(1))


def test_the_first_prediction_is_corrected_wherever_the_pipeline_uses_it() -> None:
    loop = Loop(policy())
    torch.testing.assert_close(loop.step(), expected(loop), rtol=0, atol=1e-4)


def test_a_view_of_the_first_prediction_is_corrected_too() -> None:
    loop = Loop(policy())
    whole = Loop(policy()).step()
    assert torch.equal(loop.step(keep=lambda held: held[:, :6]), whole)


def test_in_inference_mode_it_is_the_same() -> None:
    whole = Loop(policy()).step()
    with torch.inference_mode():
        loop = Loop(policy())
        assert torch.equal(loop.step(keep=lambda held: held[:, :6]), whole)


def test_a_pipeline_that_copies_the_first_prediction_is_refused() -> None:
    with pytest.raises(GuidanceError, match="did not keep the prediction"):
        Loop(policy()).step(keep=lambda held: held.double())


def test_parts_are_evaluated_as_without_guidance_and_concepts_by_themselves() -> None:
    loop = Loop(policy(start=1))
    for _ in range(2):
        loop.step()
    assert loop.denoiser.rows == [BATCH] * (2 + 4)


def test_before_the_window_the_predictions_are_the_pipelines_own() -> None:
    loop, off = Loop(policy(start=1)), Loop(SafetyPolicy.preset("off"))
    assert torch.equal(loop.step(), off.step())


def test_lists_with_an_entry_per_row_follow_their_samples() -> None:
    class Listed(Sequential):
        listed_arguments = ("sizes",)

    loop = Loop(policy(), family=Listed())
    made = loop.step(sizes=[2, 2])
    torch.testing.assert_close(made, expected(loop, 2.0), rtol=0, atol=1e-4)


def test_a_step_without_its_second_call_is_refused_at_the_next() -> None:
    loop = Loop(policy())
    loop.part(loop.cond, "cond")
    assert loop.stepper.waiting
    loop.position += 1
    with pytest.raises(GuidanceError, match=r"once at a step.*guidance_scale > 1 and a negative_prompt"):
        loop.part(loop.cond, "cond")


def test_without_guidance_a_single_call_for_each_step_is_the_pipelines_own_affair() -> None:
    loop = Loop(SafetyPolicy.preset("off"))
    for _ in range(STEPS):
        loop.part(loop.cond, "cond")
        loop.position += 1
        assert not loop.stepper.waiting


def test_step_hooks_see_and_may_replace_both_predictions() -> None:
    class Doubles:
        name, version = "doubles", "1"

        def before_guidance(self, step: Step, predictions: Predictions) -> Predictions:
            from dataclasses import replace

            return replace(predictions, uncond=2 * predictions.uncond)

        def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor:
            return 3 * guided

    loop, plain = Loop(SafetyPolicy.preset("off"), (Doubles(),)), Loop(SafetyPolicy.preset("off"))
    cond, uncond = loop.part(loop.cond, "cond"), loop.part(loop.uncond, "uncond")
    assert torch.equal(cond, 3 * plain.part(plain.cond, "cond"))
    assert torch.equal(uncond, 2 * plain.part(plain.uncond, "uncond"))


def test_caches_keep_concepts_apart_from_the_pipelines_own_calls() -> None:
    loop = Loop(policy(), caching=True)
    loop.step()
    assert loop.denoiser.contexts == ["own", "own", "sldcore-0", "sldcore-1"]


def test_with_a_cache_concepts_are_not_appended_to_the_parts() -> None:
    loop = Loop(policy(), family=DiffusersFamily(), caching=True)
    # one text for all concept rows, since they share a call
    loop.texts[1] = loop.texts[0]
    loop.stepper._inputs._concepts.arguments[1].update(loop.stepper._inputs._concepts.arguments[0])
    signature = forward_signature(loop.denoiser)
    latents, text = torch.cat([loop.latents] * 2), torch.cat([loop.uncond, loop.cond])
    call = DenoiserCall.bind(loop.family, signature, (latents, text), {})
    uncond, cond = loop.stepper.call(loop.denoiser, loop.denoiser, call)[0].chunk(2)
    assert loop.denoiser.rows == [2 * BATCH, 2 * BATCH] and loop.denoiser.contexts == ["own", "sldcore"]
    combined = uncond + 3 * (cond - uncond)
    torch.testing.assert_close(combined * cond.norm() / combined.norm(), expected(loop), rtol=0, atol=1e-4)


def test_rows_are_told_by_sample_and_concept() -> None:
    loop = Loop(policy())
    plan = loop.run.begin()
    assert plan.rows == (Row(0, 0), Row(0, 1), Row(1, 0), Row(1, 1))
