"""Schedules, solvers and frames of video pipelines."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any

import pytest
import tiny_video as tiny
import torch
from cases_video import BY_NAME, named
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    EDMEulerScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from family_checks import (
    CONCEPT,
    PROMPTS,
    Case,
    Reference,
    close,
    counting,
    policy,
    reference,
    run,
)
from tiny_images import picture
from tiny_video_denoisers import wan_transformer
from torch import Tensor

from sldcore.families.ltx import LTXVideo
from sldcore.families.noise import schedule_of
from sldcore.policy import ConceptUse
from sldcore.session import guard
from sldcore.types import Predictions, Step

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype:UserWarning")


@contextmanager
def timesteps_of(*modules: Any) -> Iterator[list[float]]:
    """The timesteps that denoisers are called with, the largest of each call."""
    seen: list[float] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        bound = signature(type(module).forward).bind(module, *args, **kwargs).arguments
        seen.append(float(torch.as_tensor(bound["timestep"]).max()))

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@named()
def test_the_schedule_is_that_of_the_denoisers_calls(case: Case) -> None:
    pipe = case.pipe()
    module = getattr(pipe, case.module)
    with timesteps_of(module) as seen, guard(pipe, policy(momentum_scale=0.0)) as session:
        run(case, pipe)
    assert len(set(seen)) > 1
    assert session.run.finished
    assert list(dict.fromkeys(seen)) == pytest.approx(list(session.run.schedule.timesteps), rel=1e-6)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("solver", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
def test_cogvideox_with_its_solvers_and_a_scale_that_changes(solver: type, dynamic: bool) -> None:
    made = partial(solver, prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0)
    case = replace(
        BY_NAME["CogVideoX"],
        pipe=lambda: tiny.cogvideox(scheduler=made(timestep_spacing="trailing")),
    )
    case = replace(case, call={**case.call, "use_dynamic_cfg": dynamic})
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe)
    close(guided, reference(case))


def wan_unipc(**options: Any) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=1000,
        flow_shift=3.0,
        **options,
    )


def test_wan_with_the_solver_that_it_comes_with() -> None:
    case = replace(BY_NAME["Wan"], pipe=lambda: tiny.wan(scheduler=wan_unipc()), prediction="flow-by-sigmas")
    pipe = case.pipe()
    with guard(pipe, policy(start=1)):
        guided = run(case, pipe)
    close(guided, reference(case, start=1))


def two_transformers(case: Case) -> Tensor:
    """The reference for a pipeline whose run goes from one transformer to another."""
    noting, seen = case.pipe(), []
    names = signature(type(noting.transformer).forward)

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(names.bind(module, *args, **kwargs).arguments["encoder_hidden_states"])

    noting.transformer.register_forward_pre_hook(note, with_kwargs=True)
    run(case, noting)
    pipe = case.pipe()
    stand_in = Reference(case, pipe, pipe.transformer, 0, {"encoder_hidden_states": seen[1]})

    def through(module: Any) -> Any:
        forward = module.forward

        def stand_in_with(*args: Any, **kwargs: Any) -> Any:
            stand_in.forward = forward
            return stand_in(*args, **kwargs)

        return functools.update_wrapper(stand_in_with, type(module).forward)

    for module in (pipe.transformer, pipe.transformer_2):
        module.forward = through(module)
    return run(case, pipe)


@pytest.mark.parametrize("second_scale", [None, 3.0], ids=["same", "other"])
@pytest.mark.parametrize("prediction", ["flow", "flow-by-sigmas"], ids=["euler", "unipc"])
def test_wans_two_transformers_are_one_run(prediction: str, second_scale: float | None) -> None:
    scheduler = wan_unipc if prediction == "flow-by-sigmas" else lambda: None
    case = replace(
        BY_NAME["Wan"],
        pipe=lambda: tiny.wan_with_two_transformers(0.8, scheduler()),
        prediction=prediction,
        call={**BY_NAME["Wan"].call, "guidance_scale_2": second_scale},
    )
    pipe = case.pipe()
    with (
        counting(case, pipe) as rows,
        timesteps_of(pipe.transformer) as high,
        timesteps_of(pipe.transformer_2) as low,
        guard(pipe, policy()) as session,
    ):
        guided = run(case, pipe)
    assert len(high) == len(low) == 4 and min(high) > max(low)
    assert len(rows) == session.trace.rows == 3 * len(session.run.schedule) == 12
    close(guided, two_transformers(case))


@pytest.mark.parametrize("first", [True, False], ids=["high noise", "low noise"])
def test_wan_with_one_of_its_two_transformers(first: bool) -> None:
    names = ("transformer", "transformer_2") if first else ("transformer_2", "transformer")
    parts = {names[0]: wan_transformer(), names[1]: None}
    # The boundary leaves all steps to the transformer that is there.
    ratio = 0.0 if first else 1.1
    case = replace(
        BY_NAME["Wan"],
        pipe=lambda: tiny.wan(**parts, boundary_ratio=ratio),
        module=names[0],
        call={**BY_NAME["Wan"].call, "guidance_scale_2": 5.0},
    )
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe)
    close(guided, reference(case))


@named("Wan", "LucyEdit")
def test_timesteps_of_wans_small_model_are_given_for_each_place(case: Case) -> None:
    options = {"expand_timesteps": True}
    make = partial(tiny.wan, f"{case.name.removesuffix('Pipeline')}Pipeline", **options)
    case = replace(case, pipe=make)
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe)
    close(guided, reference(case))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_factor_of_edm_is_that_of_its_preconditioning(kind: str) -> None:
    scheduler = EDMEulerScheduler(prediction_type=kind)
    scheduler.set_timesteps(6)
    schedule = schedule_of(scheduler, 4)
    x, prediction, more = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sigma, factor in zip(scheduler.sigmas[2:6].double(), schedule.epsilon_factors, strict=True):
        before, after = (
            (x - scheduler.precondition_outputs(x, each, sigma)) / sigma
            for each in (prediction, prediction + more)
        )
        torch.testing.assert_close(after - before, factor * more)
    assert schedule.noise_levels == tuple(sorted(schedule.noise_levels, reverse=True))
    assert len(schedule) == 4 and 0 < schedule.noise_levels[-1] < schedule.noise_levels[0] < 1


def test_free_noise_and_free_init_of_animatediff() -> None:
    case = BY_NAME["AnimateDiff"]
    long = replace(case, call={**case.call, "num_frames": 4})

    def noise() -> Any:
        pipe = case.pipe()
        pipe.enable_free_noise(context_length=3, context_stride=1)
        return pipe

    free_noise = replace(long, pipe=noise)
    pipe = free_noise.pipe()
    with guard(pipe, policy()):
        guided = run(free_noise, pipe)
    close(guided, reference(free_noise))

    pipe = case.pipe()
    pipe.enable_free_init(num_iters=2, use_fast_sampling=False)
    with counting(case, pipe) as rows, guard(pipe, policy()) as session:
        run(case, pipe)
    assert rows == [3] * 8  # every iteration is a run of its own
    assert len(session.run.schedule) == 4


def test_prompts_that_travel_keep_concepts_for_all_frames() -> None:
    case = BY_NAME["AnimateDiff"]
    pipe = case.pipe()
    pipe.enable_free_noise(context_length=3, context_stride=1)
    call = {**case.call, "num_frames": 4}
    travelling = {0: PROMPTS[0], 3: PROMPTS[1]}

    def made() -> Tensor:
        return pipe(
            prompt=travelling, generator=torch.Generator().manual_seed(0), output_type="latent", **call
        ).frames

    plain = made()
    with counting(case, pipe) as rows, guard(pipe, policy()):
        guided = made()
    assert rows == [3] * 4
    assert guided.isfinite().all() and not torch.allclose(plain, guided, atol=1e-2)


def test_latents_of_ltx_are_put_in_their_places() -> None:
    family = LTXVideo()
    strength = torch.zeros(2, 3, 4, 5, 6)  # [R, F, H, W, C]
    strength[0, 1, 2, 3] = 6.0
    strength[1, 2, 0, 4] = 3.0
    packed = strength.reshape(2, 60, 6)
    by_size = family.spatial_map(packed, {"num_frames": 3, "height": 4, "width": 5})
    torch.testing.assert_close(by_size, strength.mean((1, 4)))
    t, y, x = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(5), indexing="ij")
    coordinates = torch.stack([8.0 * t, 32.0 * y, 32.0 * x]).reshape(1, 3, 60).repeat(4, 1, 1)
    by_place = family.spatial_map(packed, {"video_coords": coordinates})
    torch.testing.assert_close(by_place, strength.mean((1, 4)))


def test_ltx_with_a_picture_in_the_middle() -> None:
    case = BY_NAME["LTXCondition"]
    condition = LTXVideoCondition(image=picture(), frame_index=4, strength=0.7)
    call = {name: each for name, each in case.call.items() if name != "image"}
    case = replace(case, call={**call, "conditions": [condition]})
    pipe = case.pipe()
    with guard(pipe, policy()) as session:
        guided = run(case, pipe)
    close(guided, reference(case))
    assert session.trace.heat.shape == (1, 8, 8)


@dataclass
class Seen:
    """A step hook that keeps predictions."""

    name: str = "seen"
    version: str = "1"
    predictions: list[Predictions] = field(default_factory=list)

    def before_guidance(self, step: Step, predictions: Predictions) -> None:
        self.predictions.append(predictions)

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> None: ...


def test_latte_evaluates_concepts_of_unequal_length() -> None:
    case, hook = BY_NAME["Latte"], Seen()
    pipe = case.pipe()
    several = policy().replace(concepts=tuple(ConceptUse(text=text) for text in (CONCEPT, "blood", "theft")))
    with counting(case, pipe) as rows, guard(pipe, several, step_hooks=[hook]):
        run(case, pipe)
    assert rows == [2, 1, 2] * 4  # "blood" and "theft" are equally long
    first = hook.predictions[0]
    assert first.latents is not None
    for number, row in enumerate(first.rows):
        text = (CONCEPT, "blood", "theft")[row.concept]
        own = pipe.transformer(
            first.latents, pipe.scheduler.timesteps[:1], case.text(pipe, text)["encoder_hidden_states"]
        ).sample[:, :4]
        close(first.concepts[number : number + 1], own.detach())
