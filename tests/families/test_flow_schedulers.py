"""Schedulers by name on a rectified flow: Stable Diffusion 3 in miniature, against the reference outside the hook."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases_images import SD3
from family_checks import (
    PROMPT,
    Case,
    check_guidance_is_the_references,
    check_off_changes_nothing,
    check_the_sign_is_the_references,
    policy,
    run,
)

from sldcore.errors import PolicyError
from sldcore.schedulers import make
from sldcore.session import guard

NAMES = ("dpm++2m", "unipc", "heun", "flow-euler")
STEPS = 4
CALLS = {"heun": 2 * STEPS - 1}
(SD3_PLAIN,) = (case for case in SD3 if case.name == "StableDiffusion3")


def with_scheduler(name: str) -> Case:
    def pipe() -> Any:
        made = SD3_PLAIN.pipe()
        made.scheduler = make(name, made.scheduler.config)
        return made

    call = {**SD3_PLAIN.call, "num_inference_steps": STEPS}
    return replace(SD3_PLAIN, name=name, pipe=pipe, call=call, prediction="flow-by-sigmas")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "check", [check_off_changes_nothing, check_guidance_is_the_references, check_the_sign_is_the_references]
)
def test_guidance_is_the_references_with_every_flow_scheduler(name: str, check: Any) -> None:
    check(with_scheduler(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_names_the_scheduler_of_a_flow(name: str) -> None:
    case = with_scheduler(name)
    with_its_own, pipe = case.pipe(), SD3_PLAIN.pipe()
    with guard(with_its_own, policy()):
        expected = run(case, with_its_own)
    own = pipe.scheduler
    with guard(pipe, policy().replace(scheduler=name)) as named:
        assert torch.equal(run(case, pipe), expected)
    assert pipe.scheduler is own
    assert len(named.trace.timesteps) == CALLS.get(name, STEPS)


def test_each_solver_goes_its_own_way() -> None:
    made = [run(with_scheduler(name), with_scheduler(name).pipe()) for name in NAMES]
    pairs = [(one, two) for i, one in enumerate(made) for two in made[i + 1 :]]
    assert all((one - two).abs().max() > 1e-3 for one, two in pairs)


@pytest.mark.parametrize("name", ["ddim", "pndm", "euler", "euler-a", "lms"])
def test_a_solver_that_knows_no_flow_is_refused_before_the_denoiser_runs(name: str) -> None:
    pipe, calls = SD3_PLAIN.pipe(), []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with (
        pytest.raises(
            PolicyError, match=r"is a rectified flow\. Names that fit: dpm\+\+2m, flow-euler, heun, unipc"
        ),
        guard(pipe, policy().replace(scheduler=name)),
    ):
        run(SD3_PLAIN, pipe, PROMPT)
    assert not calls
