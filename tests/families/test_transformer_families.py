"""Families of transformer pipelines, by the checks that all families pass, and what is special to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from typing import Any

import pytest
import tiny_transformers as tiny
import torch
from cases_transformers import CASES, SIZE, picture
from diffusers import CogVideoXDPMScheduler
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from family_checks import CHECKS, PROMPT, PROMPTS, Case, close, policy, reference, run
from torch import Tensor, nn

from sldcore.errors import GuidanceError, SafetyFailure, UnsupportedPipelineError
from sldcore.families import family_of
from sldcore.families.known_transformers import KINDS
from sldcore.policy import ConceptUse
from sldcore.session import guard

BY_NAME = {case.name: case for case in CASES}
UNEQUAL = ("a red knight on a meadow", "boat")
"""Prompts of unequal length, so that masks and paddings differ."""
NEGATIVE = "a crowd at night"
FIRST = (
    "Sana",
    "AuraFlow",
    "CogView3Plus",
    "Lumina",
    "HiDreamImage",
    "Bria",
    "CogView4",
    "Flux",
    "Chroma",
    "QwenImage",
    "Lumina2",
    "OvisImage",
    "LongCatImage",
    "StableCascadePrior",
)
"""One of each family."""


def named(*names: str) -> Any:
    """Run a test for the cases of these names."""
    return pytest.mark.parametrize("case", [BY_NAME[name] for name in names], ids=lambda case: case.name)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_transformer_pipelines(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


def test_every_class_of_the_group_has_a_case() -> None:
    named = {name for kind in KINDS for name in kind.pipelines}
    tested = {type(case.pipe()).__name__ for case in CASES}
    assert named == tested


def test_first_names_one_case_of_each_family() -> None:
    assert {BY_NAME[name].family for name in FIRST} == {case.family for case in CASES}


# --- text ------------------------------------------------------------------------------------------------------


@contextmanager
def encodings(pipe: Any) -> Iterator[list[dict[str, Any]]]:
    """What the pipeline's ``encode_prompt`` is called with, in the order of its calls."""
    kind, seen = type(pipe), []
    original = kind.encode_prompt
    names = signature(original)

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(dict(names.bind(self, *args, **kwargs).arguments))
        return original(self, *args, **kwargs)

    note.__signature__ = names
    kind.encode_prompt = note
    try:
        yield seen
    finally:
        kind.encode_prompt = original


OPTIONS: dict[str, dict[str, Any]] = {
    "Sana": {"max_sequence_length": 40, "complex_human_instruction": ["A scene: "], "clean_caption": True},
    "SanaPAG": {"max_sequence_length": 40},
    "SanaControlNet": {"complex_human_instruction": None},
    "AuraFlow": {"max_sequence_length": 40},
    "CogView3Plus": {"max_sequence_length": 40},
    "Lumina": {"clean_caption": True},
    "HiDreamImage": {"max_sequence_length": 40},
    "Bria": {"max_sequence_length": 40},
    "CogView4": {"max_sequence_length": 40},
    "Flux": {"max_sequence_length": 40, "joint_attention_kwargs": {"scale": 0.5}},
    "FluxControlNet": {"max_sequence_length": 40},
    "Chroma": {"max_sequence_length": 40},
    "QwenImage": {"max_sequence_length": 40},
    "Lumina2": {"max_sequence_length": 200, "system_prompt": "Paint this."},
    "OvisImage": {"max_sequence_length": 40},
    "LongCatImage": {},
    "StableCascadePrior": {},
}


@named(*OPTIONS)
def test_how_a_call_encodes_text_is_known_beforehand(case: Case) -> None:
    pipe = case.pipe()
    family = family_of(pipe)
    for more in ({}, OPTIONS[case.name]):
        with encodings(pipe) as seen:
            run(case, pipe, **more)
        assert family.options_of_call(pipe, {**case.call, **more}) == family.text_options(pipe, seen[-1])
    given = dict(family.options_of_call(pipe, {**case.call, **more}).given)
    own = signature(type(pipe).encode_prompt).parameters
    expected = {name for name in more if name in own and more[name] != own[name].default}
    assert expected <= given.keys()


def qwen_text(pipe: Any, concept: str) -> dict[str, Tensor]:
    """With a mask of its own, as prompts have one if their lengths differ."""
    encoded, _ = pipe.encode_prompt(concept)
    mask = torch.ones(encoded.shape[:2], dtype=torch.long)
    return {"encoder_hidden_states": encoded, "encoder_hidden_states_mask": mask}


@named(*(name for name in FIRST if name != "StableCascadePrior"))
def test_prompts_of_unequal_length_and_a_negative_prompt(case: Case) -> None:
    text = qwen_text if case.name == "QwenImage" else case.text
    case = replace(case, call={**case.call, "negative_prompt": NEGATIVE}, text=text)
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe, UNEQUAL)
    close(guided, reference(case, UNEQUAL))


LONGER: dict[str, dict[str, Any]] = {
    "Sana": {"max_sequence_length": 50},
    "AuraFlow": {"max_sequence_length": 50},
    "CogView3Plus": {"max_sequence_length": 50},
    "Flux": {"max_sequence_length": 50},
    "Chroma": {"max_sequence_length": 50},
    "HiDreamImage": {"max_sequence_length": 50},
    "Bria": {"max_sequence_length": 50},
    "OvisImage": {"max_sequence_length": 50},
    "Lumina2": {"max_sequence_length": 300, "system_prompt": "Paint this."},
}


@named(*LONGER)
def test_concepts_are_encoded_as_the_call_encodes_prompts(case: Case) -> None:
    more, encode = LONGER[case.name], type(case.pipe()).encode_prompt

    def text(pipe: Any, concept: str) -> Any:
        def longer(*args: Any, **kwargs: Any) -> Any:
            return encode(pipe, *args, **{**kwargs, **more})

        pipe.encode_prompt = longer
        try:
            return case.text(pipe, concept)
        finally:
            del pipe.encode_prompt

    longer = replace(case, call={**case.call, **more}, text=text)
    pipe = longer.pipe()
    with guard(pipe, policy()):
        guided = run(longer, pipe)
    close(guided, reference(longer))


@pytest.mark.parametrize("name", ["CogView4", "QwenImage", "Lumina", "Lumina2"])
def test_concepts_of_unequal_length_act_together(name: str) -> None:
    case = BY_NAME[name]
    long = "hate, harassment, violence, suffering, humiliation, harm, suicide, nudity, weapons, drug use"
    texts = ("blood", long)
    single = policy(momentum_scale=0.0)
    both = single.replace(concepts=tuple(ConceptUse(text=text) for text in texts))
    pipe = case.pipe()
    with guard(pipe, both) as session:
        run(case, pipe, PROMPTS, images=2)
    assert session.trace.evaluated.shape[:2] == (4, 2)
    assert session.trace.evaluated.all() and session.trace.applied[..., 1:].all()
    alone = []
    for text in texts:
        with guard(pipe, single.replace(concepts=(ConceptUse(text=text),))) as each:
            run(case, pipe, PROMPTS, images=2)
        alone.append(each.trace.norm[:, 0, 1])
    first = session.trace.norm[:, :, 1]  # noise alone says nothing about noise, so latents are still the same
    assert first[:, 0] == pytest.approx(alone[0], rel=1e-3)
    assert first[:, 1] == pytest.approx(alone[1], rel=1e-3)


SHORT: dict[str, dict[str, Any]] = {
    "Sana": {"max_sequence_length": 30},
    "AuraFlow": {"max_sequence_length": 30},
    "CogView3Plus": {"max_sequence_length": 30},
    "Flux": {"max_sequence_length": 30},
    "Chroma": {"max_sequence_length": 30},
    "HiDreamImage": {"max_sequence_length": 30},
    "Bria": {"max_sequence_length": 30},
    "CogView4": {"max_sequence_length": 30},
    "QwenImage": {"max_sequence_length": 45},
    "OvisImage": {"max_sequence_length": 45},
    "Lumina2": {"max_sequence_length": 30, "system_prompt": "Paint this."},
}


@named(*SHORT)
def test_a_concept_that_is_too_long_for_the_call_is_split_into_what_the_encoder_takes_whole(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = case.pipe()
    family = family_of(pipe)
    options = family.options_of_call(pipe, {**case.call, **SHORT[case.name]})
    with guard(pipe, "medium") as session:
        caplog.clear()
        texts = [row.text for row in session.concepts(options).rows]
    assert len(texts) > 1
    window = family.window(pipe, options)
    assert all(family.count_tokens(pipe, text, options) <= window for text in texts)
    assert "truncated" not in caplog.text


@pytest.mark.parametrize("name", ["Sana", "QwenImage", "OvisImage"])
def test_the_window_is_as_wide_as_what_the_pipeline_does_not_cut_off(name: str) -> None:
    case = BY_NAME[name]
    pipe = case.pipe()
    family = family_of(pipe)
    call = {**case.call, "max_sequence_length": 60}
    options = family.options_of_call(pipe, call)
    room = family.window(pipe, options) - family.count_tokens(pipe, "", options)
    fits, beyond = (" ".join(["blood"] * (room + more)) for more in (0, 40))
    (whole,), (changed,) = (
        family.encode(pipe, [text], options) for text in (fits, fits.removesuffix("blood") + "weapons")
    )
    states = next(iter(whole))
    assert not torch.equal(whole[states], changed[states]), "the last word of what should fit is not seen"
    (cut,), (cut_too,) = (
        family.encode(pipe, [text], options) for text in (beyond, beyond.removesuffix("blood") + "weapons")
    )
    assert torch.equal(cut[states], cut_too[states]), "the pipeline takes more than the window says"


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
            processors[name] = FluxIPAdapterAttnProcessor(tiny.WIDTH, 8, num_tokens=(4,), scale=3.0)
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
    case = replace(flux, pipe=lambda: tiny.build("FluxPipeline", transformer=tiny.flux(guidance=False)))
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
