"""One run: what step hooks see and may do, whose samples fail, and what the run knows of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sldcore.contributions import GuidanceMethod, StepHookKind
from sldcore.denoiser import DenoiserCall, forward_signature
from sldcore.encoding import ConceptRow, RunConcepts, UsedRow
from sldcore.errors import GuidanceError, PluginError, SafetyFailure
from sldcore.families.sd import StableDiffusion
from sldcore.guidance.base import GuidanceRun, GuidedSample
from sldcore.guidance.sld import SLD
from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy, Window
from sldcore.resolution import resolve_policy
from sldcore.run import GuidedRun
from sldcore.stepping import Together
from sldcore.types import Guided, Predictions, Row, Schedule, Step

Contribute = Callable[..., None]

STEPS = 5
SCHEDULE = Schedule(
    tuple(float(800 - 200 * index) for index in range(STEPS)),
    tuple(1 - index / STEPS for index in range(STEPS)),
    (1.0,) * STEPS,
)
STRONG: dict[str, Any] = {"scale": 5000.0, "threshold": 10.0, "momentum_scale": 0.0}
OFF = SafetyPolicy.preset("off")


def guiding(method: str = "sld", start: int = 0, on_error: str = "block", **options: float) -> SafetyPolicy:
    """Guidance away from concept 0 with full strength; methods other than SLD take no options."""
    chosen = {**STRONG, **options} if method == "sld" else {}
    return SafetyPolicy.model_validate(
        {
            "name": method,
            "guidance": GuidanceSpec(method=method, options=chosen, window=Window(start=start)),
            "concepts": (ConceptUse(text="blood"),),
            "on_error": on_error,
        }
    )


class Denoiser(nn.Module):
    """Predicts something of the latents and of the text, differently at every place."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(4, 2, 2, 3, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weights", weights)
        self.rows: list[int] = []

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        self.rows.append(len(sample))
        text = encoder_hidden_states.mean(1).to(sample.dtype)
        return (0.5 * sample + torch.einsum("chwd,rd->rchw", self.weights.to(sample.dtype), text),)


class Loop:
    """A denoising loop over ``GuidedRun`` with one latent and one text per sample."""

    def __init__(
        self,
        policies: Sequence[SafetyPolicy],
        hooks: Sequence[Any] = (),
        strict: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        draw = torch.Generator().manual_seed(1)
        batch = len(policies)
        self.denoiser = Denoiser()
        self.latents = [torch.randn(batch, 4, 2, 2, generator=draw).to(dtype) for _ in range(STEPS)]
        self.texts = torch.cat([torch.zeros(batch, 5, 3), torch.randn(batch, 5, 3, generator=draw)]).to(dtype)
        concept = torch.randn(2, 5, 3, generator=draw)
        rows = (ConceptRow("own/blood", "own/blood", "blood"), ConceptRow("own/fire", "own/fire", "fire"))
        used = {
            policy: (UsedRow(0, 1.0, 1.0, policy.concepts[0].window),) if policy.guides else ()
            for policy in policies
        }
        texts = tuple({"encoder_hidden_states": each} for each in concept.split(1))
        concepts = RunConcepts(rows, used, texts)
        resolved = {policy: resolve_policy(policy) for policy in policies}
        self.run = GuidedRun(SCHEDULE, policies, resolved, concepts, hooks, strict, torch.device("cpu"))
        self.stepper = Together(self.run, concepts, None, StableDiffusion())

    def step(self) -> tuple[Tensor, Tensor]:
        """One call: unconditional and guided prediction as the pipeline gets them."""
        sample = torch.cat([self.latents[self.run.calls % STEPS]] * 2)
        arguments = (sample, torch.tensor(1.0), self.texts)
        call = DenoiserCall.bind(StableDiffusion(), forward_signature(self.denoiser), arguments, {})
        output = self.stepper.call(self.denoiser, self.denoiser, call)
        assert isinstance(output, tuple)
        return output[0].chunk(2)

    def all(self) -> Tensor:
        """Guided predictions of the whole run, [T, B, C, H, W]."""
        return torch.stack([self.step()[1] for _ in range(STEPS)])


def plain(policies: Sequence[SafetyPolicy]) -> Tensor:
    """What the run gives where no policy acts."""
    return Loop([OFF] * len(policies)).all()


class Hook:
    """Writes down what it is shown; does what it is told."""

    name, version = "watcher", "1.2"

    def __init__(
        self,
        before: Callable[[Step, Predictions], Any] | None = None,
        after: Callable[[Step, Tensor], Any] | None = None,
    ) -> None:
        self.calls: list[tuple[str, int]] = []
        self.seen: list[tuple[Predictions, Tensor]] = []
        self._before, self._after = before, after

    def before_guidance(self, step: Step, predictions: Predictions) -> Any:
        self.calls.append(("before", step.index))
        return self._before(step, predictions) if self._before else None

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Any:
        self.calls.append(("after", step.index))
        self.seen.append((predictions, guided.clone()))
        return self._after(step, guided) if self._after else None


# --- step hooks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [OFF, guiding(), guiding(start=3)])
def test_a_hook_is_called_once_before_and_once_after_at_every_step(policy: SafetyPolicy) -> None:
    hook = Hook()
    Loop([policy, OFF], [hook]).all()
    assert hook.calls == [(when, index) for index in range(STEPS) for when in ("before", "after")]


def test_hooks_take_turns_in_their_order() -> None:
    turns: list[str] = []
    hooks = [
        Hook(lambda *_, n=n: turns.append(f"{n} before"), lambda *_, n=n: turns.append(f"{n} after"))
        for n in "ab"
    ]
    Loop([guiding()], hooks).step()
    assert turns == ["a before", "b before", "a after", "b after"]


def test_a_hook_sees_the_steps_of_the_schedule() -> None:
    steps: list[Step] = []
    Loop([OFF], [Hook(lambda step, _: steps.append(step))]).all()
    assert steps == [SCHEDULE.step(index) for index in range(STEPS)]


def test_a_hook_sees_concept_predictions_only_where_rows_were_evaluated() -> None:
    hook = Hook()
    Loop([OFF, guiding(start=3)], [hook]).all()
    assert [predictions.rows for predictions, _ in hook.seen] == [()] * 3 + [(Row(1, 0),)] * 2
    assert [len(predictions.concepts) for predictions, _ in hook.seen] == [0, 0, 0, 1, 1]
    assert [len(predictions.cond) for predictions, _ in hook.seen] == [2] * STEPS


def test_a_hook_that_only_watches_changes_no_bit() -> None:
    policies = [guiding(start=2), OFF]
    assert torch.equal(Loop(policies, [Hook()]).all(), Loop(policies).all())


def test_after_guidance_is_shown_the_guided_prediction() -> None:
    hook = Hook()
    guided = Loop([guiding(), OFF], [hook]).all()
    assert torch.equal(torch.stack([shown for _, shown in hook.seen]), guided)
    assert not torch.equal(guided, plain([OFF, OFF]))


def test_an_edit_after_guidance_is_what_the_pipeline_gets() -> None:
    hook = Hook(after=lambda step, guided: guided + 10 if step.index == 2 else None)
    difference = Loop([guiding(), OFF], [hook]).all() - Loop([guiding(), OFF]).all()
    assert (difference[2] - 10).abs().max() < 1e-5
    assert not difference[[0, 1, 3, 4]].any()


def test_the_next_hook_sees_the_edit_of_the_one_before() -> None:
    first = Hook(lambda _, p: replace(p, uncond=p.uncond + 1), lambda _, guided: guided * 0)
    second = Hook()
    Loop([OFF], [second]).step()
    untouched = second.seen[0][0].uncond
    second = Hook()
    Loop([OFF], [first, second]).step()
    predictions, guided = second.seen[0]
    assert torch.equal(predictions.uncond, untouched + 1)
    assert not guided.any()


def test_an_edit_of_the_unconditional_prediction_reaches_the_pipeline() -> None:
    uncond, _ = Loop([OFF]).step()
    edited, _ = Loop([OFF], [Hook(lambda _, p: replace(p, uncond=p.uncond * 2))]).step()
    assert torch.equal(edited, uncond * 2)


def test_an_edit_of_the_predictions_is_what_guidance_works_on() -> None:
    """A concept predicted like the prompt has nothing to guide away from."""
    no_concept = Hook(lambda _, p: replace(p, concepts=p.cond.clone()))
    assert torch.equal(Loop([guiding(), guiding()], [no_concept]).all(), plain([OFF, OFF]))


def failing(*_: Any) -> None:
    raise ValueError("out of ideas")


MISBEHAVIOUR: dict[str, tuple[Hook, str]] = {
    "raises before": (Hook(before=failing), "ValueError: out of ideas"),
    "raises after": (Hook(after=failing), "ValueError: out of ideas"),
    "no predictions": (Hook(before=lambda *_: torch.zeros(1)), "AttributeError"),
    "wrong shape before": (
        Hook(before=lambda _, p: replace(p, cond=p.cond[:1])),
        "cond must stay a tensor (3, 4, 2, 2)",
    ),
    "wrong dtype before": (
        Hook(before=lambda _, p: replace(p, uncond=p.uncond.half())),
        "got (3, 4, 2, 2) torch.float16",
    ),
    "other rows": (Hook(before=lambda _, p: replace(p, rows=(Row(0, 1),))), "cannot change which rows"),
    "wrong shape after": (Hook(after=lambda _, guided: guided[..., :1]), "got (3, 4, 2, 1)"),
    "wrong dtype after": (Hook(after=lambda _, guided: guided.double()), "got (3, 4, 2, 2) torch.float64"),
    "other device": (
        Hook(after=lambda _, guided: guided.to("meta")),
        "on cpu, got (3, 4, 2, 2) torch.float32 on meta",
    ),
    "no tensor": (Hook(after=lambda _, guided: guided.numpy()), "got ndarray"),
}


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_a_hook_that_misbehaves_fails_every_sample_once_and_is_not_asked_again(kind: str) -> None:
    template, message = MISBEHAVIOUR[kind]
    hook = Hook(template._before, template._after)
    policies = [guiding(), OFF, guiding()]
    loop = Loop(policies, [hook])
    result = loop.all()
    assert sorted(loop.run.failures) == [0, 1, 2]
    for failures in loop.run.failures.values():
        assert [(one.source, one.version, one.step) for one in failures] == [("watcher", "1.2", 0)]
        assert message in failures[0].error
    assert {index for _, index in hook.calls} == {0}
    assert loop.run.hopeless
    assert torch.equal(result, Loop(policies).all())


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_under_guard_a_hook_that_misbehaves_raises_at_once(kind: str) -> None:
    template, message = MISBEHAVIOUR[kind]
    loop = Loop([guiding(), OFF, guiding()], [Hook(template._before, template._after)], strict=True)
    with pytest.raises(SafetyFailure, match=r"watcher 1\.2 failed at step 0") as failed:
        loop.step()
    assert message in str(failed.value)


def test_the_other_hooks_go_on_when_one_fails() -> None:
    watching = Hook()
    Loop([OFF], [Hook(before=failing), watching]).all()
    assert len(watching.calls) == 2 * STEPS


def test_one_policy_that_says_raise_raises_for_the_batch() -> None:
    loop = Loop([guiding(), guiding(on_error="raise")], [Hook(after=failing)])
    with pytest.raises(SafetyFailure, match="out of ideas"):
        loop.step()


def test_an_interruption_is_no_failure() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    loop = Loop([OFF], [Hook(before=interrupt)])
    with pytest.raises(KeyboardInterrupt):
        loop.step()
    assert not loop.run.failures


# --- methods ---------------------------------------------------------------------------------------------------


class Method:
    """SLD with one part replaced from step ``at`` on."""

    name, version = "broken", "0.9"

    def __init__(self, at: int = 2, start: Any = None, rows: Any = None, combine: Any = None) -> None:
        self.at, self.asked = at, 0
        self.broken = {"start": start, "rows": rows, "combine": combine}

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        if self.broken["start"]:
            self.broken["start"]()
        own = [replace(sample, spec=GuidanceSpec(options=STRONG)) for sample in samples]
        return MethodRun(self, SLD().start(own, schedule))


class MethodRun:
    """State of :class:`Method`."""

    def __init__(self, method: Method, sld: GuidanceRun) -> None:
        self._method, self._sld = method, sld

    def rows(self, step: Step) -> tuple[Row, ...]:
        self._method.asked += 1
        rows = self._sld.rows(step)
        change = self._method.broken["rows"]
        return change(rows) if change and step.index >= self._method.at else rows

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        guided = self._sld.combine(step, predictions)
        change = self._method.broken["combine"]
        return change(guided) if change and step.index >= self._method.at else guided


METHOD_FAILURES: dict[str, tuple[Method, str]] = {
    "rows raises": (Method(rows=failing), "ValueError: out of ideas"),
    "rows of another method's sample": (Method(rows=lambda _: (Row(0, 0),)), "sample 0, concept 0"),
    "rows of no sample": (Method(rows=lambda _: (Row(7, 0),)), "sample 7"),
    "rows of no concept": (
        Method(rows=lambda _: (Row(1, 2),)),
        "its samples and their concepts are {1: (0,), 3: (0,)}",
    ),
    "a row twice": (Method(rows=lambda rows: rows * 2), "asked for twice"),
    "combine raises": (Method(combine=failing), "ValueError: out of ideas"),
    "cond of wrong shape": (Method(combine=lambda g: replace(g, cond=g.cond[:2])), "got (2, 4, 2, 2)"),
    "cond of wrong dtype": (Method(combine=lambda g: replace(g, cond=g.cond.double())), "torch.float64"),
    "terms of wrong shape": (
        Method(combine=lambda g: replace(g, terms=g.terms[:1])),
        "terms must be (2, 4, 2, 2)",
    ),
    "nothing": (Method(combine=lambda _: None), "AttributeError"),
}


def broken_batch(method: Method, plugin_catalogue: Contribute, **options: Any) -> Loop:
    """Samples 1 and 3 use ``method``, sample 0 uses SLD, sample 2 is off."""
    method.asked = 0
    plugin_catalogue(GuidanceMethod(name="broken", create=lambda: method))
    return Loop([guiding(), guiding("broken"), OFF, guiding("broken")], **options)


@pytest.mark.parametrize("kind", METHOD_FAILURES)
def test_a_method_that_misbehaves_fails_its_own_samples_and_no_other(
    kind: str, plugin_catalogue: Contribute
) -> None:
    method, message = METHOD_FAILURES[kind]
    loop = broken_batch(method, plugin_catalogue)
    result = loop.all()
    assert sorted(loop.run.failures) == [1, 3]
    for failures in loop.run.failures.values():
        assert [(one.source, one.version, one.step) for one in failures] == [("broken", "0.9", 2)]
        assert message in failures[0].error
    assert not loop.run.hopeless
    healthy = Loop([guiding(), OFF, OFF, OFF])
    torch.testing.assert_close(result[:, [0, 2]], healthy.all()[:, [0, 2]], rtol=0, atol=1e-6)
    torch.testing.assert_close(result[2:, [1, 3]], plain([OFF] * 4)[2:, [1, 3]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", METHOD_FAILURES)
def test_under_guard_a_method_that_misbehaves_raises_at_once(kind: str, plugin_catalogue: Contribute) -> None:
    method, message = METHOD_FAILURES[kind]
    loop = broken_batch(method, plugin_catalogue, strict=True)
    loop.step()
    loop.step()
    with pytest.raises(SafetyFailure, match=r"broken 0\.9 failed at step 2") as failed:
        loop.step()
    assert message in str(failed.value)


def test_a_method_that_failed_is_not_asked_again_and_costs_no_rows(plugin_catalogue: Contribute) -> None:
    method = Method(combine=failing)
    loop = broken_batch(method, plugin_catalogue)
    loop.all()
    assert method.asked == 3
    assert loop.denoiser.rows == [8 + 3] * 3 + [8 + 1] * 2
    assert [loop.run.rows_of(sample) for sample in range(4)] == [15, 13, 10, 13]


def test_a_method_that_cannot_start_fails_its_samples_before_the_first_step(
    plugin_catalogue: Contribute,
) -> None:
    loop = broken_batch(Method(start=failing), plugin_catalogue)
    assert {sample: failures[0].step for sample, failures in loop.run.failures.items()} == {1: None, 3: None}
    loop.all()
    assert [loop.run.rows_of(sample) for sample in range(4)] == [15, 10, 10, 10]


def test_two_methods_in_one_batch_give_what_they_give_alone(plugin_catalogue: Contribute) -> None:
    """The same equations under another name, so that one lane with all samples is the expected result."""
    result = broken_batch(Method(), plugin_catalogue).all()
    together = Loop([guiding(), guiding(), OFF, guiding()]).all()
    torch.testing.assert_close(result, together, rtol=0, atol=1e-6)
    assert not torch.equal(result[:, 1], plain([OFF] * 4)[:, 1])


def test_an_unknown_method_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(PluginError, match=r"'sdl'.*did you mean 'sld'.*available: .*sld"):
        Loop([guiding("sdl")])


def test_a_window_that_never_opens_is_an_error_and_no_failure_of_a_sample() -> None:
    with pytest.raises(GuidanceError, match="never act"):
        Loop([OFF, guiding(start=STEPS)])


# --- the run itself --------------------------------------------------------------------------------------------


def test_a_loop_that_is_longer_than_its_schedule_is_an_error() -> None:
    loop = Loop([guiding()])
    loop.all()
    with pytest.raises(GuidanceError, match="more often than the 5 times of its schedule"):
        loop.step()


def test_a_run_is_finished_after_its_last_call() -> None:
    loop = Loop([OFF])
    finished = [(loop.step(), loop.run.finished)[1] for _ in range(STEPS)]
    assert finished == [False] * (STEPS - 1) + [True]


def test_without_rows_and_hooks_the_output_is_passed_on_untouched() -> None:
    loop = Loop([OFF])
    output = (torch.zeros(2, 4, 2, 2),)
    arguments = (torch.zeros(2, 4, 2, 2), torch.tensor(1.0), loop.texts)
    call = DenoiserCall.bind(StableDiffusion(), forward_signature(loop.denoiser), arguments, {})
    assert loop.stepper.call(loop.denoiser, lambda *_: output, call) is output


def test_warm_up_with_momentum_evaluates_rows_and_changes_nothing_yet() -> None:
    loop = Loop([guiding(start=3, momentum_scale=0.5), OFF])
    result = loop.all()
    assert loop.denoiser.rows == [5] * STEPS
    torch.testing.assert_close(result[:3], plain([OFF, OFF])[:3], rtol=0, atol=1e-6)
    assert (result[3:, 0] - plain([OFF, OFF])[3:, 0]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_pipeline_gets_back_the_type_that_it_works_in(dtype: torch.dtype) -> None:
    uncond, cond = Loop([guiding(), OFF], dtype=dtype).step()
    assert (uncond.dtype, cond.dtype) == (dtype, dtype)


def test_the_trace_counts_what_the_denoiser_was_given() -> None:
    loop = Loop([guiding(start=2), OFF, guiding(start=4)])
    loop.all()
    trace = loop.run.trace
    assert trace.rows == sum(loop.denoiser.rows) == sum(loop.run.rows_of(sample) for sample in range(3))
    assert trace.evaluated.sum(axis=(1, 2)).tolist() == [3, 0, 1]
    np.testing.assert_array_equal(trace.applied, trace.evaluated)
    assert trace.concepts == ("own/blood", "own/fire")


def test_nan_from_the_denoiser_is_found_with_its_sample_method_and_first_step() -> None:
    loop = Loop([guiding(), OFF, guiding()])
    for latents in loop.latents[3:]:
        latents[2, 0, 0, 0] = float("nan")
    loop.all()
    found = loop.run.nonfinite()
    assert list(found) == [2]
    assert (found[2].source, found[2].version, found[2].step) == ("sld", SLD.version, 3)
    assert "own/blood" in found[2].error


def test_a_healthy_run_has_no_failures() -> None:
    loop = Loop([guiding(), OFF], [Hook()])
    loop.all()
    assert not loop.run.failures and not loop.run.nonfinite() and not loop.run.hopeless


# --- step hooks of policies ------------------------------------------------------------------------------------


class Edit:
    """Adds one to what it is given, of the whole batch, and remembers how large that was."""

    name, version = "edit", "1.5"

    def __init__(self, fail: bool = False) -> None:
        self.fail, self.batches = fail, list[int]()

    def before_guidance(self, step: Step, predictions: Predictions) -> Predictions:
        self.batches.append(len(predictions.cond))
        return replace(
            predictions,
            uncond=predictions.uncond + 1,
            cond=predictions.cond + 1,
            concepts=predictions.concepts + 1,
        )

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor:
        if self.fail:
            raise RuntimeError("out of ideas")
        return guided + 1


def hooked(policy: SafetyPolicy) -> SafetyPolicy:
    return policy.replace(step_hooks=["edit"])


def test_a_policys_step_hook_edits_its_own_samples_only(plugin_catalogue: Contribute) -> None:
    plugin_catalogue(StepHookKind(name="edit", create=lambda options: Edit()))
    policies = [guiding(), hooked(guiding()), OFF]
    result = Loop(policies).all()
    without = Loop([guiding(), guiding(), OFF]).all()
    everywhere = Loop([hooked(guiding())] * 3).all()
    torch.testing.assert_close(result[:, [0, 2]], without[:, [0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(result[:, 1], everywhere[:, 1], rtol=0, atol=1e-6)
    assert not torch.allclose(result[:, 1], without[:, 1])


def test_a_policys_step_hook_that_fails_withholds_its_own_samples_only(plugin_catalogue: Contribute) -> None:
    plugin_catalogue(StepHookKind(name="edit", create=lambda options: Edit(fail=True)))
    loop = Loop([guiding(), hooked(guiding()), hooked(OFF)])
    loop.all()
    assert sorted(loop.run.failures) == [1, 2]
    assert loop.run.failures[1][0].error == "RuntimeError: out of ideas"


def test_a_step_hook_that_cannot_be_made_fails_its_samples_before_the_first_step(
    plugin_catalogue: Contribute,
) -> None:
    def create(options: Any) -> Any:
        raise OSError("the folder is gone")

    plugin_catalogue(StepHookKind(name="edit", create=create))
    loop = Loop([guiding(), hooked(OFF)])
    assert sorted(loop.run.failures) == [1]
    assert loop.run.failures[1][0].step is None


def test_policies_with_the_same_step_hook_share_one(plugin_catalogue: Contribute) -> None:
    made: list[Edit] = []

    def create(options: Any) -> Edit:
        made.append(Edit())
        return made[-1]

    plugin_catalogue(StepHookKind(name="edit", create=create))
    Loop([hooked(guiding()), hooked(OFF), OFF]).all()
    assert [hook.batches for hook in made] == [[2] * STEPS]  # its own two of three samples


def test_a_concept_whose_window_never_meets_that_of_the_guidance_is_an_error() -> None:
    late = guiding(start=3).replace(concepts=[{"text": "blood", "window": {"stop": 2}}])
    with pytest.raises(GuidanceError, match=r"'own/blood'.*never open together.*widen one"):
        Loop([late])


def test_a_step_hook_sees_the_latents_of_the_conditional_half(plugin_catalogue: Contribute) -> None:
    class See(Edit):
        def before_guidance(self, step: Step, predictions: Predictions) -> None:  # type: ignore[override]
            seen.append(predictions.latents)

        def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> None:  # type: ignore[override]
            assert predictions.latents is not None

    seen: list[Tensor | None] = []
    plugin_catalogue(StepHookKind(name="edit", create=lambda options: See()))
    loop = Loop([hooked(guiding())])
    loop.step()
    assert seen[0] is not None and torch.equal(seen[0], loop.latents[0])


# --- what is shared stays as it is -----------------------------------------------------------------------------


class Undoes:
    """A step hook that undoes guidance in place and says that it only observes."""

    name, version = "undoes", "1"

    def before_guidance(self, step: Step, predictions: Predictions) -> None: ...

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> None:
        guided.copy_(predictions.cond)


def test_a_step_hook_that_edits_in_place_withholds_all_that_it_saw() -> None:
    loop = Loop([guiding(), guiding()], [Undoes()])
    loop.all()
    assert sorted(loop.run.failures) == [0, 1]
    assert "edited in place; return a replacement" in loop.run.failures[0][0].error


def test_a_policys_step_hook_that_edits_in_place_does_not_reach_other_policies(
    plugin_catalogue: Contribute,
) -> None:
    plugin_catalogue(StepHookKind(name="edit", create=lambda options: Undoes()))
    loop = Loop([guiding(), hooked(guiding())])
    result = loop.all()
    assert sorted(loop.run.failures) == [1]
    torch.testing.assert_close(result[:, 0], Loop([guiding(), OFF]).all()[:, 0], rtol=0, atol=1e-6)


def test_a_step_hook_sees_only_the_samples_of_its_policies_as_a_run_of_their_own(
    plugin_catalogue: Contribute,
) -> None:
    class See(Edit):
        def before_guidance(self, step: Step, predictions: Predictions) -> None:  # type: ignore[override]
            seen.append(predictions)

        def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> None:  # type: ignore[override]
            assert len(guided) == 1

    seen: list[Predictions] = []
    plugin_catalogue(StepHookKind(name="edit", create=lambda options: See()))
    Loop([guiding(), OFF, hooked(guiding())]).all()
    assert seen[0].rows == (Row(0, 0),)
    assert (len(seen[0].cond), len(seen[0].concepts)) == (1, 1)


@pytest.mark.parametrize("damage", ["others", "in place", "applied"])
def test_a_method_cannot_change_samples_that_are_not_its_own(
    damage: str, plugin_catalogue: Contribute
) -> None:
    def spoil(guided: Guided) -> Guided:
        if damage == "others":
            return replace(guided, cond=torch.full_like(guided.cond, 7.0))
        if damage == "applied":
            return replace(guided, applied=(0, 1, 2, 3))
        guided.cond.zero_()
        return guided

    loop = broken_batch(Method(at=0, combine=spoil), plugin_catalogue)
    result = loop.all()
    healthy = Loop([guiding(), OFF, OFF, OFF]).all()
    if damage == "others":
        assert not loop.run.failures
    elif damage == "applied":
        assert sorted(loop.run.failures) == [1, 3]
    torch.testing.assert_close(result[:, [0, 2]], healthy[:, [0, 2]], rtol=0, atol=1e-6)


def test_a_method_that_edits_its_input_in_place_withholds_the_whole_batch(
    plugin_catalogue: Contribute,
) -> None:
    class Paints(Method):
        def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
            run: Any = super().start(samples, schedule)
            combine = run.combine

            def painted(step: Step, predictions: Predictions) -> Guided:
                predictions.uncond.zero_()
                return combine(step, predictions)

            run.combine = painted
            return run

    loop = broken_batch(Paints(), plugin_catalogue)
    loop.step()
    assert sorted(loop.run.failures) == [0, 1, 2, 3]


def test_a_method_that_never_acts_is_found_out(plugin_catalogue: Contribute) -> None:
    loop = broken_batch(Method(at=0, rows=lambda rows: ()), plugin_catalogue)
    loop.all()
    assert sorted(loop.run.idle()) == [1, 3]
    assert "never guided this picture" in loop.run.idle()[1].error


def test_a_policy_that_asks_for_nothing_is_not_found_to_be_idle() -> None:
    loop = Loop([guiding(scale=0.0)])
    loop.all()
    assert loop.run.idle() == {}


def test_an_exit_in_a_step_hook_ends_no_more_than_its_pictures() -> None:
    def leave(*_: Any) -> None:
        raise SystemExit(0)

    loop = Loop([OFF], [Hook(before=leave)])
    loop.step()
    assert loop.run.failures[0][0].error == "SystemExit: 0"


def test_a_step_hook_named_twice_acts_twice_and_on_its_own_samples_only(plugin_catalogue: Contribute) -> None:
    plugin_catalogue(StepHookKind(name="edit", create=lambda options: Edit()))
    twice = OFF.replace(step_hooks=["edit", "edit"])
    result = Loop([twice, OFF]).all()
    plain_result = Loop([OFF, OFF]).all()
    torch.testing.assert_close(result[:, 1], plain_result[:, 1], rtol=0, atol=0)
    torch.testing.assert_close(result[:, 0], plain_result[:, 0] + 4, rtol=0, atol=1e-5)


def test_step_hooks_run_in_the_order_of_their_own_policy(plugin_catalogue: Contribute) -> None:
    class Twice(Edit):
        def before_guidance(self, step: Step, predictions: Predictions) -> None:  # type: ignore[override]
            return None

        def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor:
            return guided * 2

    class Plus(Twice):
        def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor:
            return guided + 1

    plugin_catalogue(StepHookKind(name="twice", create=lambda options: Twice()))
    plugin_catalogue(StepHookKind(name="plus", create=lambda options: Plus()))
    one, other = OFF.replace(step_hooks=["twice", "plus"]), OFF.replace(step_hooks=["plus", "twice"])
    result, plain_result = Loop([one, other]).all(), Loop([OFF, OFF]).all()
    torch.testing.assert_close(result[:, 0], plain_result[:, 0] * 2 + 1)
    torch.testing.assert_close(result[:, 1], (plain_result[:, 1] + 1) * 2)


def test_rows_as_plain_pairs_are_rows(plugin_catalogue: Contribute) -> None:
    loop = broken_batch(Method(at=0, rows=lambda rows: tuple(tuple(row) for row in rows)), plugin_catalogue)
    loop.all()
    assert not loop.run.failures
