"""The safety checker that a pipeline brings along, as the engine and SLDPipeline use it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from sldcore import SafetyEngine, SafetyPolicy, SLDPipeline
from sldcore.errors import SafetyFailure

PROMPTS = list(tiny_pipelines.PROMPTS[:3])
FAST: dict[str, Any] = {"num_inference_steps": 4, "output_type": "np"}


def checker() -> StableDiffusionSafetyChecker:
    """diffusers' checker with random weights."""
    torch.manual_seed(5)
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**size, "image_size": 32, "patch_size": 8}
    return StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)).eval()


@torch.no_grad()
def flag_only_what_looks_like(pipe: Any, pictures: np.ndarray, index: int) -> None:
    """Set the checker's concepts to one picture, and its thresholds just below that picture's score."""
    judge = pipe.safety_checker
    inputs = pipe.feature_extractor(pipe.numpy_to_pil(pictures), return_tensors="pt").pixel_values
    embeds = judge.visual_projection(judge.vision_model(inputs)[1])
    judge.concept_embeds.copy_(embeds[index].expand_as(judge.concept_embeds))
    judge.special_care_embeds_weights.fill_(2.0)
    others = torch.nn.functional.cosine_similarity(embeds, embeds[index : index + 1])
    others[index] = -1
    judge.concept_embeds_weights.fill_(float((1 + others.max()) / 2))


def with_checker(parts: dict[str, Any], cls: type) -> Any:
    """A pipeline with the real checker, set to flag the third of the three prompts' plain pictures and no other."""
    made = tiny_pipelines.pipeline(
        cls,
        **parts,
        safety_checker=checker(),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    flag_only_what_looks_like(made, plain_pictures(made), 2)
    return made


@pytest.fixture
def pipe(parts: dict[str, Any]) -> Any:
    return with_checker(parts, StableDiffusionPipeline)


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(0) for _ in PROMPTS]


def plain_pictures(pipe: Any) -> np.ndarray:
    kept, pipe.safety_checker = pipe.safety_checker, None
    call = getattr(pipe, "plain_call", pipe)
    pictures: np.ndarray = call(PROMPTS, generator=seeded(), **FAST).images
    pipe.safety_checker = kept
    return pictures


def test_what_was_flagged_is_kept_as_it_was_generated(parts: dict[str, Any]) -> None:
    """diffusers' checker blackens the tensor that it is given; ours must not be that tensor."""
    pipe = with_checker(parts, SLDPipeline)
    plain = plain_pictures(pipe)
    with pytest.warns(UserWarning, match="safety guidance is off"):
        output = pipe(PROMPTS, generator=seeded(), sld_guidance_scale=0, **FAST)
    assert output.nsfw_content_detected == [False, False, True]
    assert not output.images[2].any()
    np.testing.assert_array_equal(output.unsafe_images[2], plain[2])


def test_only_the_flagged_picture_of_a_batch_is_black_and_each_has_its_own_verdict(pipe: Any) -> None:
    result = SafetyEngine(pipe, "off").generate(PROMPTS, **FAST)
    assert [report.action for report in result.reports] == ["none", "none", "black"]
    assert [[verdict.flagged for verdict in r.verdicts] for r in result.reports] == [[False], [False], [True]]
    assert result.reports[2].verdicts[0].filter == "safety-checker"
    assert np.array_equal(np.stack(result.images[:2]), plain_pictures(pipe)[:2])
    assert not np.any(result.images[2])


def test_sld_pipeline_gives_flags_and_the_unsafe_pictures_as_the_original_does(parts: dict[str, Any]) -> None:
    pipe = with_checker(parts, SLDPipeline)
    plain = plain_pictures(pipe)
    with pytest.warns(UserWarning, match="safety guidance is off"):
        output = pipe(PROMPTS, generator=seeded(), sld_guidance_scale=0, **FAST)
    assert output.nsfw_content_detected == [False, False, True]
    assert not output.images[2].any()
    assert np.array_equal(output.images[:2], plain[:2])
    assert not output.unsafe_images[:2].any()
    assert np.array_equal(output.unsafe_images[2], plain[2])


def test_a_checker_that_raises_withholds_every_picture(pipe: Any) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("no memory left")

    pipe.safety_checker.forward = broken
    result = SafetyEngine(pipe, "off").generate(PROMPTS, **FAST)
    assert [report.action for report in result.reports] == ["block"] * 3
    assert "RuntimeError: no memory left" in result.reports[0].errors[0].error
    assert not np.any(result.images)


def test_a_checker_that_speaks_of_too_few_pictures_withholds_every_picture(pipe: Any) -> None:
    pipe.safety_checker.forward = lambda images, clip_input: (images, [False, False])
    result = SafetyEngine(pipe, "off").generate(PROMPTS, **FAST)
    assert [report.errors[0].error for report in result.reports] == ["2 verdicts for 3 pictures"] * 3
    assert not np.any(result.images)


def test_a_failing_checker_raises_where_the_policy_says_so(pipe: Any) -> None:
    pipe.safety_checker.forward = lambda images, clip_input: (images, None)
    policy = SafetyPolicy.preset("off").replace(on_error="raise")
    with pytest.raises(SafetyFailure, match="safety-checker: 0 verdicts for 3 pictures"):
        SafetyEngine(pipe, policy).generate(PROMPTS, **FAST)


def test_the_pipeline_has_its_own_checker_back_afterwards(pipe: Any) -> None:
    SafetyEngine(pipe, "off").generate(PROMPTS, **FAST)
    assert "run_safety_checker" not in vars(pipe)
    assert pipe(PROMPTS, generator=seeded(), **FAST).nsfw_content_detected == [False, False, True]
