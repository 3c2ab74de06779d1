"""Families of transformer pipelines, by the checks that all families pass, and what is special to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny_transformer_denoisers as denoisers
import tiny_transformers as tiny
import torch
from cases_transformers import BY_NAME, CASES, FIRST, SIZE, named, picture
from diffusers import CogVideoXDPMScheduler
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from family_checks import CHECKS, PROMPT, PROMPTS, Case, close, policy, reference, run
from tiny_transformer_texts import WIDTH
from torch import Tensor, nn

from sldcore.errors import GuidanceError, SafetyFailure, UnsupportedPipelineError
from sldcore.families import family_of
from sldcore.session import guard


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_transformer_pipelines(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


def test_first_names_one_case_of_each_family() -> None:
    assert {BY_NAME[name].family for name in FIRST} == {case.family for case in CASES}


# --- calls apart -----------------------------------------------------------------------------------------------


class PictureTokens(nn.Module):
    """Stands in for an IP-Adapter's projection: embeddings [1, B, 8] as tokens [B, 4, 8]."""

    num_ip_adapters = 1

    def forward(self, embeddings: list[Tensor]) -> list[Tensor]:
        return [each.reshape(-1, 1, 8).repeat(1, 4, 1) for each in embeddings]


def with_adapter() -> Any:
    """FLUX whose attention hears a picture."""
    pipe = tiny.build("FluxPipeline")
    processors = dict(pipe.transformer.attn_processors)
    for name in processors:
        if "single" not in name:
            torch.manual_seed(80)
            processors[name] = FluxIPAdapterAttnProcessor(WIDTH, 8, num_tokens=(4,), scale=3.0)
    pipe.transformer.set_attn_processor(processors)
    pipe.transformer.encoder_hid_proj = PictureTokens()
    return pipe


def test_a_concept_row_hears_the_picture_of_its_prompt_and_not_that_of_the_negative_one() -> None:
    one, other = (torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(seed)) * 3 for seed in (1, 2))
    pictures = {"ip_adapter_image_embeds": [one], "negative_ip_adapter_image_embeds": [other]}
    flux = BY_NAME["Flux"]
    case = replace(flux, pipe=with_adapter, call={**flux.call, **pictures})
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe)
    close(guided, reference(case))


def test_lumina2_guides_without_bringing_the_norm_back() -> None:
    case = BY_NAME["Lumina2"]
    case = replace(case, call={**case.call, "cfg_normalization": False})
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe)
    close(guided, reference(case))


def test_lumina2_that_leaves_out_unconditional_calls_is_refused() -> None:
    case = BY_NAME["Lumina2"]
    pipe = case.pipe()
    with (
        pytest.raises((GuidanceError, SafetyFailure), match=r"unconditional|nothing guided"),
        guard(pipe, policy()),
    ):
        run(case, pipe, cfg_trunc_ratio=0.5)


def test_longcat_guides_without_bringing_the_norm_back() -> None:
    case = BY_NAME["LongCatImage"]
    case = replace(case, call={**case.call, "enable_cfg_renorm": False})
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe)
    close(guided, reference(case))


def test_flux_without_guidance_embedding_is_guided() -> None:
    flux = BY_NAME["Flux"]
    case = replace(flux, pipe=lambda: tiny.build("FluxPipeline", transformer=denoisers.flux(guidance=False)))
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe)
    close(guided, reference(case))


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4])
@named(*BY_NAME)
def test_without_classifier_free_guidance_a_policy_is_refused(case: Case, steps: int) -> None:
    pipe = case.pipe()
    error = pytest.raises((GuidanceError, SafetyFailure), match=family_of(pipe).guidance_argument)
    with error, guard(pipe, policy()):
        run(case, pipe, num_inference_steps=steps, **case.unguided)


DISTILLED = [
    case.name for case in CASES if "negative_prompt" in case.call and case.call.get("true_cfg_scale")
]


@named(*DISTILLED)
def test_a_distilled_model_without_a_negative_prompt_is_refused_and_told_what_to_do(case: Case) -> None:
    pipe = case.pipe()
    error = pytest.raises(GuidanceError, match="true_cfg_scale > 1 and a negative_prompt")
    with error, guard(pipe, policy()):
        run(case, pipe, negative_prompt=None)


@named(*DISTILLED)
def test_a_distilled_model_without_a_negative_prompt_runs_under_off(case: Case) -> None:
    pipe = case.pipe()
    plain = run(case, pipe, negative_prompt=None)
    with guard(pipe, "off"):
        assert torch.equal(run(case, pipe, negative_prompt=None), plain)


def test_a_pipeline_that_makes_no_unconditional_prediction_is_not_supported() -> None:
    from diffusers import FluxFillPipeline

    pipe = FluxFillPipeline(**tiny.PARTS["FluxPipeline"]())
    with pytest.raises(UnsupportedPipelineError, match="FluxFillPipeline"), guard(pipe, policy()):
        pass


# --- schedules, places -----------------------------------------------------------------------------------------


@named("FluxImg2Img", "FluxKontextInpaint", "ChromaImg2Img", "QwenImageInpaint")
def test_what_starts_from_a_picture_has_the_schedule_of_its_last_steps(case: Case) -> None:
    pipe, seen = case.pipe(), []

    def note(_module: Any, _args: Any, kwargs: Any) -> None:
        seen.append(float(kwargs["timestep"][0]) * 1000)

    pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    with guard(pipe, policy(momentum_scale=0.0)) as session:
        run(case, pipe)
    assert session.run.schedule.timesteps == pytest.approx(seen[::2], rel=1e-5)
    assert len(session.run.schedule) == 3


def test_cogview3_with_its_second_order_scheduler() -> None:
    cogview = BY_NAME["CogView3Plus"]

    def pipe() -> Any:
        made = cogview.pipe()
        made.scheduler = CogVideoXDPMScheduler.from_config(made.scheduler.config)
        return made

    case = replace(cogview, pipe=pipe)
    made = case.pipe()
    with guard(made, policy()):
        guided = run(case, made)
    close(guided, reference(case))


WIDE: dict[str, tuple[int, int]] = {
    "Flux": (16, 8),
    "FluxKontext": (16, 8),
    "Chroma": (16, 8),
    "QwenImage": (8, 4),
    "OvisImage": (16, 8),
    "LongCatImage": (16, 8),
    "Bria": (16, 8),
    "Sana": (16, 8),
}


@named(*WIDE)
def test_the_map_of_where_guidance_acted_has_the_places_of_the_picture(case: Case) -> None:
    pipe = case.pipe()
    more = {"max_area": 2 * SIZE * SIZE} if case.name == "FluxKontext" else {}
    with guard(pipe, policy()) as session:
        run(case, pipe, height=2 * SIZE, **more)
    assert session.trace.heat.shape[1:] == WIDE[case.name]


def test_the_map_of_packed_latents_is_brightest_where_the_term_is() -> None:
    family = family_of(BY_NAME["Flux"].pipe())
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(3), indexing="ij")
    places = torch.stack([torch.zeros(12), rows.flatten(), columns.flatten()], dim=1)
    edited = torch.cat([places, places + torch.tensor([1, 0, 0])])
    strength = torch.zeros(1, 24, 5)
    strength[0, 7] = 1.0
    heat = family.spatial_map(strength, {"img_ids": edited})
    assert heat.shape == (1, 4, 3)
    assert heat[0, 2, 1] == 1.0 and heat.sum() == 1.0


@named(
    "Flux", "QwenImage", "Bria", "LongCatImage", "Chroma", "OvisImage", "HiDreamImage", "StableCascadePrior"
)
def test_the_size_of_pictures_is_known_beforehand(case: Case) -> None:
    pipe = case.pipe()
    family = family_of(pipe)
    asked = {**case.call, "height": 2 * SIZE}
    made = run(case, pipe, height=2 * SIZE, output_type="pt")
    if case.name == "StableCascadePrior":
        assert family.picture_size(pipe, asked) == (2 * SIZE, SIZE)
    else:
        assert family.picture_size(pipe, asked) == tuple(made.shape[-2:])


def test_one_picture_alone_is_the_same_as_in_a_batch() -> None:
    case = BY_NAME["QwenImage"]
    pipe = case.pipe()
    with guard(pipe, policy()):
        alone, batch = run(case, pipe, PROMPT), run(case, pipe, PROMPTS)
    close(batch[:1], alone)


def test_an_edited_picture_is_kept_out_of_the_prediction() -> None:
    case = BY_NAME["FluxKontext"]
    pipe = case.pipe()
    with guard(pipe, policy()):
        one, other = run(case, pipe), run(case, pipe, image=picture(5))
    assert one.shape == other.shape
    assert not torch.allclose(one, other, atol=1e-2)
