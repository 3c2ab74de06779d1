"""Schedulers by name: made from the pipeline's own config, refused where they do not fit, counted and guided correctly."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipelineSafe,
    UniPCMultistepScheduler,
)

from sldcore import SafetyPolicy, SLDPipeline, guard
from sldcore.errors import PolicyError
from sldcore.schedulers import SOLVERS, fitting, is_flow_config, make

STEPS = 6
DISCRETE = ("ddim", "pndm", "euler", "euler-a", "dpm++2m", "unipc", "lms", "heun")
FLOW = ("dpm++2m", "unipc", "heun", "flow-euler")
CALLS = {"pndm": STEPS + 1, "heun": 2 * STEPS - 1}
"""Denoiser calls where they are not the number of steps."""
PROMPTS = list(tiny_pipelines.PROMPTS[:2])
STRONG = SafetyPolicy.preset("max")


def call(pipe: Any, seed: int | None = None, **more: Any) -> Any:
    generator = None if seed is None else [torch.Generator().manual_seed(seed + i) for i in range(2)]
    return pipe(
        PROMPTS,
        latents=tiny_pipelines.latents(2),
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        generator=generator,
        output_type="np",
        **more,
    ).images


# --- which name fits which model -------------------------------------------------------------------------------


MODELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "epsilon": (tiny_pipelines.ddim(), DISCRETE),
    "v": (tiny_pipelines.ddim(prediction_type="v_prediction"), DISCRETE),
    "x0": (
        tiny_pipelines.ddim(prediction_type="sample"),
        ("ddim", "euler", "dpm++2m", "unipc", "lms"),
    ),
    "zero terminal SNR": (
        tiny_pipelines.ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        ("ddim", "euler", "euler-a", "dpm++2m", "unipc"),
    ),
    "flow": (FlowMatchEulerDiscreteScheduler(shift=3.0), FLOW),
    "flow, dynamic shift": (
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        ("dpm++2m", "unipc", "flow-euler"),
    ),
    "flow, linear dynamic shift": (
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        ("flow-euler",),
    ),
    "flow, inverted sigmas": (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), ("flow-euler",)),
    "flow by UniPC": (
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        FLOW,
    ),
    "CogVideoX": (CogVideoXDDIMScheduler(prediction_type="v_prediction"), ("ddim",)),
    "CogVideoX by DPM": (CogVideoXDPMScheduler(prediction_type="v_prediction"), ("ddim",)),
    "EDM": (EDMEulerScheduler(), ()),
}


@pytest.mark.parametrize(("own", "names"), MODELS.values(), ids=MODELS)
def test_names_that_fit_a_model_make_a_scheduler_for_it_and_others_are_refused_with_these(
    own: Any, names: tuple[str, ...]
) -> None:
    assert set(fitting(own.config)) == set(names)
    for name in SOLVERS:
        if name in names:
            assert hasattr(make(name, own.config), "set_timesteps")
            continue
        with pytest.raises(
            PolicyError, match=rf"'{name.replace('+', '.')}' does not fit this model"
        ) as refused:
            make(name, own.config)
        assert all(fits in str(refused.value) for fits in names)


@pytest.mark.parametrize("name", DISCRETE)
def test_a_scheduler_keeps_what_the_model_was_trained_with(name: str) -> None:
    own = tiny_pipelines.ddim(
        prediction_type="v_prediction",
        beta_schedule="linear",
        beta_end=0.01,
        timestep_spacing="trailing",
        num_train_timesteps=500,
    )
    made = make(name, own.config)
    torch.testing.assert_close(made.alphas_cumprod, own.alphas_cumprod)
    for key in ("prediction_type", "timestep_spacing", "num_train_timesteps", "steps_offset"):
        assert made.config[key] == own.config[key]


def test_ddim_of_cogvideox_has_its_shifted_noise_schedule() -> None:
    own = CogVideoXDPMScheduler(prediction_type="v_prediction", snr_shift_scale=2.0)
    made = make("ddim", own.config)
    assert type(made) is CogVideoXDDIMScheduler
    torch.testing.assert_close(made.alphas_cumprod, own.alphas_cumprod)
    assert not torch.allclose(
        made.alphas_cumprod, DDIMScheduler.from_config(own.config).alphas_cumprod.to(made.alphas_cumprod)
    )


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("own", ["flow", "flow by UniPC"])
def test_the_shift_of_a_flow_is_kept_whatever_its_class_calls_it(name: str, own: str) -> None:
    config = MODELS[own][0].config
    shift = config.get("shift") or config["flow_shift"]
    made = make(name, config)
    made.set_timesteps(20)
    assert made.config.get("flow_shift", made.config.get("shift")) == shift
    assert is_flow_config(made.config)
    halfway = shift * 0.5 / (1 + (shift - 1) * 0.5)
    assert min(abs(float(sigma) - halfway) for sigma in made.sigmas) < 0.03
    assert abs(float(made.sigmas[0]) - 1) < 1e-2 and float(made.sigmas[-1]) == 0


@pytest.mark.parametrize("name", ["dpm++2m", "unipc", "flow-euler"])
def test_dynamic_shifting_is_done_by_the_pipelines_mu(name: str) -> None:
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.7)
    made = make(name, own.config)
    made.set_timesteps(20, mu=1.1)
    halfway = np.exp(1.1) / (np.exp(1.1) + 1)
    assert min(abs(float(sigma) - halfway) for sigma in made.sigmas) < 0.03
    assert made.config["base_shift"] == 0.7  # which the pipeline makes mu from


@pytest.mark.parametrize("name", ["dpm++2m", "heun"])
def test_noise_levels_of_the_pipelines_own_are_refused_by_solvers_that_choose_them(name: str) -> None:
    made = make(name, FlowMatchEulerDiscreteScheduler().config)
    with pytest.raises(PolicyError, match=r"chooses the noise levels.*flow-euler, unipc"):
        made.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4), device="cpu")


# --- what the solvers do under guidance ------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISCRETE)
def test_every_denoiser_call_is_one_step(pipe: Any, name: str) -> None:
    calls = []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with guard(pipe, STRONG.replace(scheduler=name)) as session:
        call(pipe, seed=0)
    expected = CALLS.get(name, STEPS)
    assert len(calls) == len(session.trace.timesteps) == expected
    assert session.trace.applied.shape[-1] == expected and session.trace.applied.all()


def sld(**options: float) -> dict[str, float]:
    """With momentum that is still felt at the end, from a warm-up that ends between two calls of a Heun step."""
    chosen = {
        "sld_guidance_scale": 2000.0,
        "sld_warmup_steps": 2,
        "sld_threshold": 0.025,
        "sld_momentum_scale": 0.5,
        "sld_mom_beta": 0.7,
    }
    return {**chosen, **options}


@pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")
@pytest.mark.parametrize("name", DISCRETE)
def test_momentum_and_warmup_count_denoiser_calls_as_the_reference_does(
    parts: dict[str, Any], name: str
) -> None:
    components = {**parts, "scheduler": make(name, tiny_pipelines.ddim().config)}
    ours = tiny_pipelines.pipeline(SLDPipeline, **components)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated as a whole
        safe = tiny_pipelines.pipeline(StableDiffusionPipelineSafe, **components)
    safe.safety_concept = ours.safety_concept
    reference = call(safe, seed=0, **sld())
    np.testing.assert_allclose(call(ours, seed=0, **sld()), reference, rtol=0, atol=1e-4)
    for other in ({"sld_momentum_scale": 0.0}, {"sld_warmup_steps": 3}):
        assert np.abs(call(safe, seed=0, **sld(**other)) - reference).max() > 5e-4, f"{other} is not felt"


@pytest.mark.parametrize("name", DISCRETE)
def test_guidance_leaves_the_noise_of_the_solver_alone(pipe: Any, name: str) -> None:
    pipe.scheduler = make(name, pipe.scheduler.config)

    def after(policy: SafetyPolicy | str | None) -> tuple[Any, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        arguments = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "np"}
        if policy is None:
            return pipe(PROMPTS[0], generator=generator, **arguments).images, generator.get_state()
        with guard(pipe, policy):
            return pipe(PROMPTS[0], generator=generator, **arguments).images, generator.get_state()

    plain, state = after(None)
    off, state_off = after("off")
    guided, state_guided = after(STRONG)
    assert np.array_equal(off, plain) and not np.allclose(guided, plain, atol=1e-3)
    assert torch.equal(state_off, state) and torch.equal(state_guided, state)


def test_the_ancestral_solver_draws_noise_at_every_step(pipe: Any) -> None:
    pipe.scheduler = make("euler-a", pipe.scheduler.config)
    drawn = []
    for steps in (2, 3):
        generator = torch.Generator().manual_seed(0)
        pipe(PROMPTS[0], num_inference_steps=steps, generator=generator, output_type="latent")
        drawn.append(torch.rand(1, generator=generator))
    assert drawn[0] != drawn[1]


def test_a_name_that_does_not_fit_is_refused_before_the_denoiser_runs(pipe: Any) -> None:
    calls = []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    own = pipe.scheduler
    with (
        pytest.raises(PolicyError, match=r"'flow-euler' does not fit.*predicts epsilon.*ddim, dpm\+\+2m"),
        guard(pipe, STRONG.replace(scheduler="flow-euler")),
    ):
        raise AssertionError("the block must not be entered")
    assert not calls and pipe.scheduler is own
