"""Gates and texts in place of the pipeline's own, end to end on pipelines of different kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cases_images
import cases_transformers
import cases_video
import numpy as np
import pytest
from diffusers import FirstBlockCacheConfig
from family_checks import CONCEPT, PROMPT, PROMPTS, Case, policy

from sldcore import Result, SafetyEngine, SafetyPolicy
from sldcore.policy import ConceptUse, Gate, GuidanceSpec, Options

BY_NAME = {case.name: case for case in [*cases_images.CASES, *cases_transformers.CASES, *cases_video.CASES]}
KINDS = (
    "StableDiffusionXL",
    "StableDiffusion3",
    "PixArtSigma",
    "StableDiffusionImg2Img",
    "StableDiffusionControlNet",
    "StableDiffusionPAG",
    "StableDiffusionXLControlNetPAG",  # goes on where nobody needs its picture
    "StableDiffusionInstructPix2Pix",  # gives the negative prompt to two of its three parts
    "AnimateDiff",
    "HiDreamImage",  # rows of its texts are not in front
    "Flux",
    "QwenImage",  # divides by the norm of the guided prediction; texts of any length
    "Wan",
)
WITH_NEGATIVE = [name for name in KINDS if "ControlNet" not in name]
"""A ControlNet reads the negative prompt, too, and goes on with the pipeline's own."""
NEGATIVE = SafetyPolicy(
    name="negative",
    guidance=GuidanceSpec(method="negative", options=Options({})),
    concepts=(ConceptUse(text=CONCEPT),),
)
OFF = SafetyPolicy.preset("off")
CLOSE = 1e-4


def kinds(names: Sequence[str] = KINDS) -> Any:
    return pytest.mark.parametrize("case", [BY_NAME[name] for name in names], ids=lambda case: case.name)


def gated(threshold: float) -> SafetyPolicy:
    plain = policy()
    gate = Gate(probes=(1,), unit="steps", threshold=threshold)
    assert plain.guidance is not None
    return plain.replace(name="gated", guidance=plain.guidance.model_copy(update={"gate": gate}))


def made(
    case: Case, pipe: Any, policies: Sequence[SafetyPolicy], prompts: Sequence[str] = (PROMPT,), **more: Any
) -> Result:
    count = len(prompts)
    call = {**case.call, **more, "output_type": "np"}
    call |= {name: [call[name]] * count for name in (*case.per_prompt, *case.per_picture) if count > 1}
    if isinstance(call.get("negative_prompt"), str):
        call["negative_prompt"] = [call["negative_prompt"]] * count
    return SafetyEngine(pipe, OFF).generate(prompts, seed=7, policies=policies, **call)


def apart(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).max())


@kinds()
def test_a_gate_leaves_a_picture_alone_or_has_it_made_as_without_gate(case: Case) -> None:
    pipe = case.pipe()
    prompts = [PROMPTS[0], PROMPTS[1], f"{PROMPTS[0]} at night"]
    off = made(case, pipe, [OFF] * 3, prompts)
    guided = made(case, pipe, [policy()] * 3, prompts)
    assert apart(off.images, guided.images) > 5 * CLOSE
    looked = made(case, pipe, [gated(1.0)] * 3, prompts)
    assert np.array_equal(np.stack(looked.images), np.stack(off.images))
    again = made(case, pipe, [gated(-1.0)] * 3, prompts)
    assert apart(again.images, guided.images) < CLOSE
    mixed = made(case, pipe, [gated(1.0), gated(-1.0), OFF], prompts)
    expected = [off.images[0], guided.images[1], off.images[2]]
    assert [apart(*pair) < CLOSE for pair in zip(mixed.images, expected, strict=True)] == [True] * 3
    for result in (looked, again, mixed):
        assert [report.errors for report in result.reports] == [()] * 3
        assert result.trace.rows == sum(report.rows for report in result.reports)


@kinds(WITH_NEGATIVE)
def test_a_negative_concept_is_the_pipelines_own_negative_prompt(case: Case) -> None:
    pipe = case.pipe()
    ours = made(case, pipe, [NEGATIVE])
    theirs = made(case, pipe, [OFF], negative_prompt=CONCEPT)
    assert apart(ours.images, theirs.images) < 1e-6
    assert apart(ours.images, made(case, pipe, [OFF]).images) > 1e-3
    assert ours.reports[0].rows == ours.reports[0].plain_rows


def counted(case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every call of the denoiser from here on."""
    module, rows = getattr(pipe, case.module), list[int]()
    forward = module.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(args[0] if args else kwargs[case.latents]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", counting)
    return rows


@kinds(("StableDiffusionXL", "StableDiffusionXLControlNetPAG", "Flux", "QwenImage"))
def test_rows_are_counted_as_the_denoiser_evaluates_them(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = case.pipe()
    for thresholds in ([-1.0, 1.0], [-1.0, -1.0]):
        with monkeypatch.context() as patched:
            rows = counted(case, pipe, patched)
            result = made(case, pipe, [gated(each) for each in thresholds], PROMPTS)
        assert sum(rows) == sum(report.rows for report in result.reports)


@kinds(("HunyuanDiTControlNet",))
def test_lists_that_a_denoiser_empties_do_not_reach_its_next_call(case: Case) -> None:
    """HunyuanDiT takes its ControlNet's states out of the list that it is given."""
    result = made(case, case.pipe(), [gated(1.0)])
    assert result.reports[0].errors == ()
    assert result.reports[0].rows == result.reports[0].plain_rows + 1


@kinds(("Flux",))
def test_rows_that_a_cache_remembers_are_all_evaluated_and_counted(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = case.pipe()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    rows = counted(case, pipe, monkeypatch)
    result = made(case, pipe, [gated(-1.0), gated(1.0)], PROMPTS)
    assert sum(rows) == sum(report.rows for report in result.reports)
    assert [report.errors for report in result.reports] == [(), ()]


@kinds(("AnimateDiff",))
def test_a_probe_that_finds_something_decides_though_a_later_pass_of_the_loop_does_not(case: Case) -> None:
    """FreeInit goes through the timesteps twice; of what was given up, the second time shows nothing."""
    pipe = case.pipe()
    pipe.enable_free_init(num_iters=2, use_fast_sampling=False)
    guided, off = (made(case, pipe, [each] * 2, PROMPTS) for each in (policy(), OFF))
    mixed = made(case, pipe, [gated(-1.0), gated(1.0)], PROMPTS)
    assert apart(mixed.images[0], guided.images[0]) < CLOSE
    assert apart(mixed.images[1], off.images[1]) < CLOSE
    assert [len(report.probes) for report in mixed.reports] == [2, 2]
    assert mixed.trace.rows == sum(report.rows for report in mixed.reports)
