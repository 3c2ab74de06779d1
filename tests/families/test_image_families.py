"""Families of picture pipelines, by the checks that all families pass, and what is special to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases_images import CASES, REFINER, SD3, SDXL
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from family_checks import CHECKS, PROMPT, PROMPTS, Case, close, counting, encodings, policy, reference, run

from sldcore.errors import GuidanceError
from sldcore.families import family_of
from sldcore.session import guard

pytestmark = pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")

BY_NAME = {case.name: case for case in CASES}
UNEQUAL = ("a red knight on a meadow", "boat")
"""Prompts of unequal length, so that their masks differ."""
NEGATIVE = "a crowd at night"


def named(*names: str) -> Any:
    """Run a test for the cases of these names."""
    cases = [BY_NAME[name] for name in names] if names else CASES
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@named()
def test_picture_pipelines(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


# --- text ------------------------------------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {
    "StableDiffusionXL": {"clip_skip": 1, "cross_attention_kwargs": {"scale": 0.5}},
    "StableDiffusionXLControlNet": {"clip_skip": 1},
    "StableDiffusion3": {"clip_skip": 1, "max_sequence_length": 20},
    "PixArtAlpha": {"max_sequence_length": 20},
    "PixArtSigma": {"max_sequence_length": 20, "clean_caption": True},
    "StableDiffusionPAG": {"cross_attention_kwargs": {"scale": 0.5}},
}
FIXED = {"Kolors": {"max_sequence_length": 20}, "HunyuanDiT": {}}
"""Families whose pipelines encode text in one way only."""


@named(*OPTIONS, *FIXED)
def test_how_a_call_encodes_text_is_known_beforehand(case: Case) -> None:
    pipe = case.pipe()
    family = family_of(pipe)
    for more in ({}, {**OPTIONS, **FIXED}[case.name]):
        call = {**case.call, **more}
        with encodings(pipe) as seen:
            run(case, pipe, **more)
        assert family.options_of_call(pipe, call) == family.text_options(pipe, seen[-1])
    assert bool(family.options_of_call(pipe, call).given) == (case.name in OPTIONS)


@named("StableDiffusion3", "PixArtAlpha", "PixArtSigma")
def test_concepts_are_encoded_as_long_as_prompts(case: Case) -> None:
    length = {"max_sequence_length": 20}
    encode = case.pipe().encode_prompt.__func__

    def text(pipe: Any, concept: str) -> Any:
        shorter = SimpleNamespace(encode_prompt=partial(encode, pipe, **length))
        return case.text(shorter, concept)

    shorter = replace(case, call={**case.call, **length}, text=text)
    pipe = shorter.pipe()
    with guard(pipe, policy()):
        guided = run(shorter, pipe)
    close(guided, reference(shorter))


@named(
    "StableDiffusionXL",
    "StableDiffusion3",
    "PixArtAlpha",
    "PixArtSigmaPAG",
    "Kolors",
    "HunyuanDiT",
    "HunyuanDiTPAG",
)
def test_prompts_of_unequal_length_and_a_negative_prompt(case: Case) -> None:
    case = replace(case, call={**case.call, "negative_prompt": NEGATIVE})
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe, UNEQUAL)
    close(guided, reference(case, UNEQUAL))


@named("StableDiffusionXL", "StableDiffusion3", "PixArtAlpha", "Kolors", "HunyuanDiT")
def test_a_concept_that_is_too_long_for_the_call_is_split(case: Case) -> None:
    pipe = case.pipe()
    more = {"max_sequence_length": 16} if case.name in ("StableDiffusion3", "PixArtAlpha") else {}
    family = family_of(pipe)
    options = family.options_of_call(pipe, {**case.call, **more})
    with guard(pipe, "medium") as session:
        texts = [row.text for row in session.concepts(options).rows]
        assert (len(texts) > 1) == bool(more)
        window = family.window(pipe, options)
        assert all(family.count_tokens(pipe, text, options) <= window for text in texts)
        for name, width in family._windows(pipe, options).items():
            assert all(family.tokens_of(pipe, name, text) <= width for text in texts)


# --- schedules -------------------------------------------------------------------------------------------------


@contextmanager
def timesteps_of(case: Case, pipe: Any) -> Iterator[list[float]]:
    """The timesteps that the denoiser is called with."""
    module, seen = getattr(pipe, case.module), []

    def note(_module: Any, args: Any, kwargs: Any) -> None:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        seen.append(float(torch.as_tensor(timestep).flatten()[0]))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@named(
    "StableDiffusionXL",
    "StableDiffusionXLImg2Img",
    "StableDiffusionXLInpaint",
    "StableDiffusionXLControlNetImg2Img",
    "StableDiffusion3Img2Img",
    "KolorsImg2Img",
    "HunyuanDiT",
)
def test_the_schedule_is_that_of_the_denoisers_calls(case: Case) -> None:
    pipe = case.pipe()
    with timesteps_of(case, pipe) as seen, guard(pipe, policy(momentum_scale=0.0)) as session:
        run(case, pipe)
    assert len(seen) > 1
    assert tuple(seen) == session.run.schedule.timesteps


SOLVERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler}
PIECES: dict[str, dict[str, Any]] = {
    "StableDiffusionXL": {"denoising_end": 0.6},
    "StableDiffusionXLImg2Img": {"denoising_start": 0.4, "denoising_end": 0.8},
    "StableDiffusionXLInpaint": {"denoising_end": 0.7},
    "StableDiffusionXLPAG": {"denoising_end": 0.6},
    "StableDiffusionXLControlNet": {"denoising_end": 0.6},
    REFINER.name: {"denoising_start": 0.5},
    "Kolors": {"denoising_end": 0.6},
}


@pytest.mark.parametrize("solver", SOLVERS)
@named(*PIECES)
def test_a_piece_of_the_run_has_the_schedule_of_that_piece(case: Case, solver: str) -> None:
    pipe = case.pipe()
    pipe.scheduler = SOLVERS[solver].from_config(pipe.scheduler.config)
    case = replace(case, call={**case.call, "num_inference_steps": 10, **PIECES[case.name]})
    with timesteps_of(case, pipe) as seen, guard(pipe, policy(momentum_scale=0.0, scale=0.001)) as session:
        run(case, pipe)
    assert 0 < len(session.run.schedule) < len(pipe.scheduler.timesteps)
    assert session.run.finished
    assert tuple(seen) == session.run.schedule.timesteps


def test_base_and_refiner_are_guided_one_after_the_other() -> None:
    (base,) = (case for case in SDXL if case.name == "StableDiffusionXL")
    first = replace(base, call={**base.call, "num_inference_steps": 8, "denoising_end": 0.5})
    pipe = base.pipe()
    with guard(pipe, policy()):
        latents = run(first, pipe)
    close(latents, reference(first))
    start = {"num_inference_steps": 8, "denoising_start": 0.5, "image": latents}
    second = replace(REFINER, call={**REFINER.call, **start})
    refiner = REFINER.pipe()
    with guard(refiner, policy()) as session:
        guided = run(second, refiner)
    close(guided, reference(second))
    assert len(session.run.schedule) == 4


# --- more parts, and calls beside them -------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [PROMPT, PROMPTS], ids=["one", "two"])
def test_skip_layer_guidance_is_left_alone_and_compares_with_the_safe_prediction(prompts: Any) -> None:
    (plain,) = (case for case in SD3 if case.name == "StableDiffusion3")
    skipping = {
        "skip_guidance_layers": [1],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    }
    case = replace(
        plain,
        call={**plain.call, **skipping},
        aside=lambda arguments: arguments.get("skip_layers") is not None,
    )
    pipe = case.pipe()
    with guard(pipe, policy()) as session:
        guided = run(case, pipe, prompts)
    close(guided, reference(case, prompts))
    assert not torch.allclose(guided, run(plain, pipe, prompts), atol=1e-2)
    assert session.run.finished


PAG = [case for case in CASES if case.parts_at_once]


@pytest.mark.parametrize("case", PAG, ids=lambda case: case.name)
def test_attention_is_perturbed_at_every_call_and_afterwards_as_without_a_guard(case: Case) -> None:
    pipe, plain = case.pipe(), case.pipe()
    module = getattr(pipe, case.module)
    run(case, plain)
    seen: list[int] = []

    def count(_module: Any, _args: Any, _kwargs: Any) -> None:
        seen.append(len(pipe.pag_attn_processors))

    handle = module.register_forward_pre_hook(count, with_kwargs=True)
    with guard(pipe, policy()):
        run(case, pipe)
    handle.remove()
    assert seen[0] > 0
    assert seen == seen[:1] * len(seen)
    own, unguarded = (
        {name: type(each) for name, each in getattr(made, case.module).attn_processors.items()}
        for made in (pipe, plain)
    )
    assert own == unguarded


@named("StableDiffusionXLPAG", "StableDiffusion3PAG", "PixArtSigmaPAG", "HunyuanDiTPAG")
def test_without_a_pag_scale_there_are_two_parts_and_concepts_ride_along(case: Case) -> None:
    plain = replace(
        case,
        call={**case.call, "pag_scale": 0.0},
        parts=("uncond", "cond"),
        parts_at_once=False,
        concept_module=None,
    )
    pipe = plain.pipe()
    with counting(plain, pipe) as rows, guard(pipe, policy()):
        guided = run(plain, pipe)
    assert rows == [3, 3, 3, 3]
    close(guided, reference(plain))


# --- refusals --------------------------------------------------------------------------------------------------


@named(
    "StableDiffusionXL",
    "StableDiffusionXLPAG",
    "StableDiffusion3",
    "PixArtAlpha",
    "PixArtSigmaPAG",
    "Kolors",
    "HunyuanDiT",
    "StableDiffusionGLIGEN",
    "StableDiffusionInstructPix2Pix",
    "StableDiffusionXLInstructPix2Pix",
)
def test_without_classifier_free_guidance_a_policy_is_refused(case: Case) -> None:
    pipe = case.pipe()
    with pytest.raises(GuidanceError, match="classifier-free"), guard(pipe, policy()):
        run(case, pipe, **case.unguided)
