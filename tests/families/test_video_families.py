"""Families of video pipelines, by the checks that all families pass, and in the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from cases_video import FROM_TEXT, named
from family_checks import (
    CHECKS,
    PROMPT,
    PROMPTS,
    Case,
    check_a_batch_is_the_references,
    close,
    policy,
    run,
)

from sldcore import SafetyEngine
from sldcore.errors import GuidanceError
from sldcore.families import family_of
from sldcore.session import guard

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype:UserWarning")

ONE_AT_A_TIME = ("WanVACE", "AnimateDiffControlNet", "EasyAnimateInpaint")
"""Pipelines that cannot make several different videos in one call."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@named()
def test_video_pipelines(case: Case, check: Callable[[Case], None]) -> None:
    if case.name in ONE_AT_A_TIME and check is check_a_batch_is_the_references:
        pytest.skip("the pipeline takes no batches")
    check(case)


@named(*FROM_TEXT)
def test_without_classifier_free_guidance_a_policy_is_refused(case: Case) -> None:
    pipe = case.pipe()
    with pytest.raises(GuidanceError, match="classifier-free"), guard(pipe, policy()):
        run(case, pipe, **case.unguided)


@named(*FROM_TEXT)
def test_in_a_batch_only_the_videos_of_a_policy_are_guided(case: Case) -> None:
    pipe = case.pipe()
    plain = run(case, pipe, PROMPTS)
    with guard(pipe, policy()):
        guided = run(case, pipe, PROMPTS)
    with guard(pipe, ["off", policy()]) as session:
        mixed = run(case, pipe, PROMPTS)
    close(mixed, torch.stack([plain[0], guided[1]]))
    assert session.trace.rows - session.trace.plain_rows == 4


@named(*(name for name in FROM_TEXT if name != "CosmosTextToWorld"))
def test_the_engine_makes_videos(case: Case) -> None:
    if case.name == "CogVideoX":
        case = replace(case, call={**case.call, "num_frames": 9})  # what its decoder gives back as asked
    pipe = case.pipe()
    result = SafetyEngine(pipe, policy()).generate(PROMPT, seed=0, output_type="np", **case.call)
    (video,) = result.images
    frames = case.call.get("num_frames", case.call.get("video_length"))
    assert np.asarray(video).shape == (frames, case.call["height"], case.call["width"], 3)
    assert not result.reports[0].errors
    assert family_of(pipe).picture_size(pipe, case.call) == (case.call["height"], case.call["width"])


@named("CogVideoX", "AnimateDiff", "Latte", "Mochi", "Allegro")
def test_without_a_size_pictures_have_that_of_the_pipeline(case: Case) -> None:
    pipe = case.pipe()
    call = {name: each for name, each in case.call.items() if name not in ("height", "width")}
    seen: list[tuple[int, int]] = []

    def note(*args: Any, **kwargs: Any) -> Any:
        bound = signature(type(pipe).prepare_latents).bind(pipe, *args, **kwargs).arguments
        seen.append((bound["height"], bound["width"]))
        raise InterruptedError

    pipe.prepare_latents = note
    with pytest.raises(InterruptedError):
        run(replace(case, call=call), pipe)
    assert seen == [family_of(pipe).picture_size(pipe, call)]


@named("Mochi", "Wan", "LTX", "HunyuanVideo")
def test_half_precision(case: Case) -> None:
    pipe = case.pipe().to(torch.bfloat16)
    plain = run(case, pipe)
    with guard(pipe, policy()):
        guided = run(case, pipe)
    assert guided.dtype == plain.dtype and guided.isfinite().all()
    assert (guided - plain).abs().max() > 0.05
