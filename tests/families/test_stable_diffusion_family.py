"""Stable Diffusion's family, by the checks that all families pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_pipelines as tiny
from diffusers import StableDiffusionPipeline
from family_checks import CHECKS, Case
from torch import Tensor

from sldcore.families.sd import StableDiffusion


def text(pipe: Any, concept: str) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipe.encode_prompt(concept, "cpu", 1, False)[0]}


def pipe(prediction: str) -> Any:
    scheduler = tiny.ddim(prediction_type=prediction, rescale_betas_zero_snr=prediction != "epsilon")
    return tiny.pipeline(StableDiffusionPipeline, **tiny.parts(), scheduler=scheduler)


CASES = [
    Case(
        name=f"stable-diffusion-{kind}",
        family=StableDiffusion,
        pipe=lambda kind=kind: pipe({"epsilon": "epsilon", "v": "v_prediction"}[kind]),
        text=text,
        prediction=kind,
        call={"num_inference_steps": 4, "guidance_scale": 5.0},
        module="unet",
        latents="sample",
    )
    for kind in ("epsilon", "v")
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_stable_diffusion(case: Case, check: Callable[[Case], None]) -> None:
    check(case)
