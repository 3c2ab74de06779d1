"""Ways in which guidance could be lost without a word, and what happens instead."""

from __future__ import annotations

from copy import deepcopy
from inspect import signature
from typing import Any

import pytest
import torch
from cases_images import CASES as IMAGES
from cases_transformers import CASES as TRANSFORMERS
from cases_video import BY_NAME as VIDEOS
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from diffusers.hooks import apply_first_block_cache
from family_checks import Case, policy, run

from sldcore.errors import ConceptError, GuidanceError, SafetyFailure
from sldcore.session import guard

BY_NAME = {**{case.name: case for case in (*IMAGES, *TRANSFORMERS)}, **VIDEOS}
SDXL = next(case for case in IMAGES if type(case.pipe()).__name__ == "StableDiffusionXLPipeline")
WAN, COGVIDEOX = VIDEOS["Wan"], VIDEOS["CogVideoX"]


def broadcasting(pipe: Any) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe._current_timestep,
    )


def faster(pipe: Any) -> FasterCacheConfig:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe._current_timestep,
    )


# --- denoisers that reuse what they computed ----------------------------------------------------------------------


@pytest.mark.parametrize("config", [broadcasting, faster])
@pytest.mark.parametrize("case", [COGVIDEOX, WAN], ids=["together", "apart"])
def test_caches_that_keep_one_state_for_all_calls_are_refused(case: Case, config: Any) -> None:
    pipe = case.pipe()
    pipe.transformer.enable_cache(config(pipe))
    with (
        pytest.raises(GuidanceError, match=r"does not keep concepts apart.*disable_cache"),
        guard(pipe, policy()),
    ):
        run(case, pipe)


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.parametrize("config", [broadcasting, faster])
def test_with_such_a_cache_the_policy_off_changes_nothing(config: Any) -> None:
    def made(guarded: bool) -> torch.Tensor:
        pipe = COGVIDEOX.pipe()
        pipe.transformer.enable_cache(config(pipe))
        if not guarded:
            return run(COGVIDEOX, pipe)
        with guard(pipe, "off"):
            return run(COGVIDEOX, pipe)

    assert torch.equal(made(True), made(False))


@pytest.mark.parametrize("direct", [False, True], ids=["enable_cache", "applied directly"])
@pytest.mark.parametrize("case", [COGVIDEOX, WAN], ids=["together", "apart"])
def test_a_first_block_cache_does_not_mix_concepts_with_the_pipelines_own_calls(
    case: Case, direct: bool
) -> None:
    def made(chosen: Any) -> list[torch.Tensor]:
        pipe, seen = case.pipe(), []
        config = FirstBlockCacheConfig(threshold=0.2)
        if direct:
            apply_first_block_cache(pipe.transformer, config)
        else:
            pipe.transformer.enable_cache(config)

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append(tensors["latents"].clone())
            return tensors

        with guard(pipe, chosen):
            run(case, pipe, callback_on_step_end=keep)
        return seen

    last = len(made("off")) - 1
    warming_up, plain = made(policy(start=last, momentum_scale=0.3)), made("off")
    for one, other in zip(warming_up[:last], plain[:last], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(warming_up[last], plain[last])


# --- text encoders ----------------------------------------------------------------------------------------------


def test_concepts_are_encoded_anew_if_the_text_encoder_changes_inside_a_session() -> None:
    def changed(pipe: Any) -> None:
        with torch.no_grad():
            for encoder in (pipe.text_encoder, pipe.text_encoder_2):
                for weight in encoder.parameters():
                    weight.mul_(1.1)

    pipe, fresh = deepcopy(SDXL.pipe()), deepcopy(SDXL.pipe())  # the cases share their components
    changed(fresh)
    with guard(fresh, policy()):
        expected = run(SDXL, fresh)
    with guard(pipe, policy()):
        run(SDXL, pipe)
        changed(pipe)
        assert torch.equal(run(SDXL, pipe), expected)


@pytest.mark.parametrize("case", [SDXL, WAN], ids=["picture", "video"])
@pytest.mark.parametrize("what", ["text_encoder", "tokenizer"])
def test_without_text_encoders_the_message_says_what_is_missing(case: Case, what: str) -> None:
    pipe = case.pipe()
    for name in [name for name in pipe.components if name.startswith(what)]:
        setattr(pipe, name, None)
    with pytest.raises(ConceptError, match="no text encoder or no tokenizer"), guard(pipe, policy()):
        pass


# --- calls that are stopped, and what is left behind ------------------------------------------------------------


@pytest.mark.parametrize("case", [SDXL, WAN], ids=["together", "apart"])
def test_a_call_that_is_stopped_before_guidance_acted_is_an_error(case: Case) -> None:
    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return tensors

    pipe = case.pipe()
    with (
        pytest.raises(SafetyFailure, match=r"never guided this picture.*stopped after 1 of"),
        guard(pipe, policy(start=2)),
    ):
        run(case, pipe, callback_on_step_end=stop)


def test_methods_that_the_owner_put_on_the_pipeline_are_used_and_put_back() -> None:
    pipe = SDXL.pipe()
    own = {"encode_prompt": 0, "maybe_free_model_hooks": 0}
    for name in own:
        original = getattr(pipe, name)

        def counting(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            own[name] += 1
            return original(*args, **kwargs)

        counting.__signature__ = signature(original)  # type: ignore[attr-defined]
        setattr(pipe, name, counting)
    before = {name: vars(pipe)[name] for name in own}
    with guard(pipe, policy()):
        run(SDXL, pipe)
    assert own == {"encode_prompt": 2, "maybe_free_model_hooks": 1}  # the prompt's and the concept's
    assert {name: vars(pipe)[name] for name in own} == before
