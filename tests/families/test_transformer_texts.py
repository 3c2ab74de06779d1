"""How families of transformer pipelines encode concepts: as the pipelines encode prompts, whole, at their own length."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import Any

import pytest
import torch
from cases_transformers import BY_NAME, FIRST, named
from family_checks import PROMPTS, Case, close, encodings, policy, reference, run
from torch import Tensor

from sldcore.families import family_of
from sldcore.policy import ConceptUse
from sldcore.session import guard

UNEQUAL = ("a red knight on a meadow", "boat")
"""Prompts of unequal length, so that masks and paddings differ."""
NEGATIVE = "a crowd at night"


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
