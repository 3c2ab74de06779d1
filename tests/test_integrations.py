"""Guidance with everything else that diffusers can do, on the real classes.

The reference needs neither hook nor rows: it replaces the denoiser's forward by one that evaluates everything twice,
with the prompts' text and with the concept's, and applies the equations in the plainest way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from accelerate import cpu_offload
from numpy.typing import NDArray
from tiny_pipelines import PROMPTS
from tiny_setups import (
    controlnet,
    controlnet_that_guesses,
    image_to_image,
    inpainting,
    inpainting_with_nine_channels,
    ip_adapter,
    lora,
    rescaled_guidance,
    several_pictures_per_prompt,
    slicing,
    text_to_image,
    v_prediction,
    with_lora,
)
from torch import Tensor

from sldcore import SafetyEngine, SafetyPolicy, guard
from sldcore.errors import SafetyFailure, SessionError
from sldcore.policy import ConceptUse, GuidanceSpec, Window

SLD = {"scale": 2000.0, "threshold": 0.025, "momentum_scale": 0.5, "momentum_beta": 0.7}
CONCEPT = "an image showing blood, weapons"
POLICY = SafetyPolicy(
    name="test",
    guidance=GuidanceSpec(options=SLD, window=Window(start=1)),
    concepts=(ConceptUse(text=CONCEPT),),
)
TWO = list(PROMPTS[:2])
Setup = Callable[[dict[str, Any]], tuple[Any, dict[str, Any]]]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def run(pipe: Any, **call: Any) -> NDArray[np.float32]:
    """Six steps, unless the call says otherwise, of two pictures."""
    pictures = len(call.get("prompt", TWO)) * call.get("num_images_per_prompt", 1)
    defaults = {"prompt": TWO, "num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "np"}
    images: NDArray[np.float32] = pipe(generator=generators(pictures), **{**defaults, **call}).images
    return images


@contextmanager
def reference(pipe: Any, concept: str = CONCEPT) -> Iterator[None]:
    """Guide one call of ``pipe`` without sldcore."""
    forward, scheduler = pipe.unet.forward, pipe.scheduler
    text = pipe.encode_prompt(concept, "cpu", 1, False)[0]
    step, momentum = 0, torch.zeros(())

    def guided(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **rest: Any) -> Any:
        nonlocal step, momentum
        output = forward(sample, timestep, encoder_hidden_states, **rest)
        e_u, e_p = output[0].chunk(2)
        e_s = forward(sample, timestep, text.expand_as(encoder_hidden_states), **rest)[0].chunk(2)[1]
        v = scheduler.config.prediction_type == "v_prediction"
        factor = scheduler.alphas_cumprod[int(timestep)] ** 0.5 if v else 1.0
        mu = (((e_p - e_s) * factor).abs() * SLD["scale"]).clamp(max=1)
        mu = torch.where((e_p - e_s) * factor >= SLD["threshold"], 0.0, mu)
        gamma = mu * (e_s - e_u) * factor + SLD["momentum_scale"] * momentum
        momentum = SLD["momentum_beta"] * momentum + (1 - SLD["momentum_beta"]) * gamma
        safe = e_p - gamma / factor if step >= 1 else e_p
        step += 1
        return (
            (torch.cat([e_u, safe]),) if isinstance(output, tuple) else type(output)(torch.cat([e_u, safe]))
        )

    pipe.unet.forward = guided
    try:
        yield
    finally:
        del pipe.unet.forward


@pytest.mark.parametrize(
    "setup",
    [
        text_to_image,
        several_pictures_per_prompt,
        rescaled_guidance,
        v_prediction,
        image_to_image,
        inpainting,
        inpainting_with_nine_channels,
        controlnet,
        controlnet_that_guesses,
        ip_adapter,
        lora,
        slicing,
    ],
    ids=lambda setup: setup.__name__,
)
def test_guidance_is_the_same_with(parts: dict[str, Any], setup: Setup) -> None:
    pipe, call = setup(parts)
    plain = run(pipe, **call)
    with reference(pipe):
        expected = run(pipe, **call)
    with guard(pipe, POLICY) as session:
        guided = run(pipe, **call)
    np.testing.assert_allclose(guided, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - plain).max(axis=(1, 2, 3)).min() > 1e-3
    assert session.trace.applied[:, 0].sum(axis=1).tolist() == [5] * len(plain)
    assert np.array_equal(run(pipe, **call), plain)


@pytest.mark.parametrize(
    "setup", [image_to_image, inpainting, controlnet, ip_adapter], ids=lambda setup: setup.__name__
)
def test_the_engine_takes_the_pipelines_own_arguments(parts: dict[str, Any], setup: Setup) -> None:
    pipe, call = setup(parts)
    with reference(pipe):
        expected = run(pipe, **call)
    common = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "np"}
    result = SafetyEngine(pipe, POLICY).generate(TWO, seed=[0, 1], **{**common, **call})
    np.testing.assert_allclose(np.stack(list(result.images)), expected, rtol=0, atol=1e-4)
    assert [report.rows for report in result.reports] == [3 * 6] * 2


def test_callbacks_see_every_step_and_what_they_return_is_used(pipe: Any) -> None:
    seen: list[int] = []

    def halve_at_the_end(_: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return {"latents": tensors["latents"] * 0.5} if step == 5 else {}

    with reference(pipe):
        expected = run(pipe, callback_on_step_end=halve_at_the_end)
    with guard(pipe, POLICY):
        guided = run(pipe, callback_on_step_end=halve_at_the_end)
    assert seen == [0, 1, 2, 3, 4, 5] * 2
    np.testing.assert_allclose(guided, expected, rtol=0, atol=1e-4)


# --- LoRA in the text encoder ---------------------------------------------------------------------------------


def unchanged_by_its_own_prompt(engine: SafetyEngine, **call: Any) -> bool:
    """True if the concept is encoded as the prompt is: then a concept that is the prompt has no direction."""
    own = POLICY.replace(concepts=(ConceptUse(text=PROMPTS[0]),))
    common = {"num_inference_steps": 6, "output_type": "np", **call}
    guided = engine.generate(PROMPTS[0], policies=[own], **common).images[0]
    off = engine.generate(PROMPTS[0], policies=["off"], **common).images[0]
    return bool(np.abs(guided - off).max() < 1e-5)


def test_concepts_are_encoded_with_the_calls_lora_scale(pipe: Any) -> None:
    engine = SafetyEngine(with_lora(pipe), POLICY)
    assert unchanged_by_its_own_prompt(engine)
    assert unchanged_by_its_own_prompt(engine, cross_attention_kwargs={"scale": 0.3})


def test_concepts_are_encoded_anew_when_lora_is_loaded_weighted_switched_off_or_fused(pipe: Any) -> None:
    engine = SafetyEngine(pipe, POLICY)
    assert unchanged_by_its_own_prompt(engine)
    with_lora(pipe)
    assert unchanged_by_its_own_prompt(engine)
    pipe.set_adapters(["lora"], [0.2])
    assert unchanged_by_its_own_prompt(engine)
    pipe.disable_lora()
    assert unchanged_by_its_own_prompt(engine)
    pipe.enable_lora()
    pipe.fuse_lora()
    assert unchanged_by_its_own_prompt(engine)


# --- offloading -----------------------------------------------------------------------------------------------


def test_model_offloading_keeps_the_next_calls_guarded(pipe: Any) -> None:
    """diffusers takes every hook off and puts its own on again at the end of each call."""
    plain = run(pipe)
    with reference(pipe):
        expected = run(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with guard(pipe, POLICY):
        for _ in range(3):
            np.testing.assert_allclose(run(pipe), expected, rtol=0, atol=1e-4)
    assert np.array_equal(run(pipe), plain)
    assert pipe.unet._hf_hook is not None
    result = SafetyEngine(pipe, POLICY).generate(TWO, seed=[0, 1], num_inference_steps=6, guidance_scale=4.0)
    assert result.trace.applied.sum() == 10


def test_model_offloading_enabled_inside_guard_leaves_no_hook_behind(pipe: Any) -> None:
    plain = run(pipe)
    with reference(pipe):
        expected = run(pipe)
    with guard(pipe, POLICY):
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            np.testing.assert_allclose(run(pipe), expected, rtol=0, atol=1e-4)
    assert np.array_equal(run(pipe), plain)
    with guard(pipe, POLICY):
        np.testing.assert_allclose(run(pipe), expected, rtol=0, atol=1e-4)


def test_a_denoiser_whose_layers_are_offloaded_one_by_one_is_guided_too(pipe: Any) -> None:
    """What sequential offloading does to a denoiser."""
    plain = run(pipe)
    with reference(pipe):
        expected = run(pipe)
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    with guard(pipe, POLICY):
        for _ in range(2):
            np.testing.assert_allclose(run(pipe), expected, rtol=0, atol=1e-4)
    assert np.array_equal(run(pipe), plain)


# --- torch.compile --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_denoiser_is_guided_and_left_as_it_was(pipe: Any, how: str) -> None:
    steps = 3  # one before the window, one that begins the momentum, and one that has it
    plain = run(pipe, num_inference_steps=steps)
    with guard(pipe, POLICY):
        expected = run(pipe, num_inference_steps=steps)
    if how == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.unet.compile(backend="eager")
    with guard(pipe, POLICY):
        np.testing.assert_allclose(run(pipe, num_inference_steps=steps), expected, rtol=0, atol=1e-5)
        with pytest.raises(SessionError), guard(pipe, POLICY):
            pass
    assert np.abs(expected - plain).max() > 1e-2
    np.testing.assert_allclose(run(pipe, num_inference_steps=steps), plain, rtol=0, atol=1e-5)
    torch.compiler.reset()


def test_a_denoiser_that_is_no_longer_compiled_is_guided(pipe: Any) -> None:
    compiled = torch.compile(pipe.unet, backend="eager")
    plain_unet, pipe.unet = pipe.unet, compiled
    with guard(pipe, POLICY):
        pass
    pipe.unet = plain_unet
    with reference(pipe):
        expected = run(pipe)
    with guard(pipe, POLICY):
        np.testing.assert_allclose(run(pipe), expected, rtol=0, atol=1e-4)


# --- several runs in one session ------------------------------------------------------------------------------


def test_each_call_inside_guard_is_a_run_of_its_own(pipe: Any) -> None:
    with guard(pipe, POLICY) as session:
        first, trace = run(pipe), session.trace
        second = run(pipe)
        assert np.array_equal(first, second), "momentum must start afresh"
        assert session.trace is not trace
        np.testing.assert_array_equal(session.trace.norm, trace.norm)
        longer = run(pipe, num_inference_steps=8, prompt=[PROMPTS[0]])
        assert session.trace.applied.shape == (1, 1, 8)
    with guard(pipe, POLICY):
        assert np.array_equal(run(pipe, num_inference_steps=8, prompt=[PROMPTS[0]]), longer)


def test_an_interrupted_call_does_not_shift_the_steps_of_the_next(pipe: Any) -> None:
    with guard(pipe, POLICY):
        expected = run(pipe)

    def give_up(_: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise TimeoutError
        return {}

    with guard(pipe, POLICY) as session:
        with pytest.raises(TimeoutError):
            run(pipe, callback_on_step_end=give_up)
        assert np.array_equal(run(pipe), expected)
        assert session.trace.evaluated.all()


def test_a_call_inside_guard_that_bypasses_the_guarded_denoiser_is_an_error(pipe: Any) -> None:
    with pytest.raises(SafetyFailure, match="never called"), guard(pipe, POLICY):
        pipe.unet = tiny_pipelines.unet()
        run(pipe)


def test_policies_per_picture_inside_guard(pipe: Any) -> None:
    plain = run(pipe)
    with guard(pipe, POLICY):
        guided = run(pipe)
    with guard(pipe, [POLICY, "off"]):
        mixed = run(pipe)
    np.testing.assert_allclose(mixed, np.stack([guided[0], plain[1]]), rtol=0, atol=1e-4)
