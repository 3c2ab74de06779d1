"""How families of video pipelines encode and count concepts: as their pipelines do with prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_image_texts as texts
import torch
from cases_video import BY_NAME, FROM_TEXT, named
from family_checks import (
    Case,
    close,
    encodings,
    policy,
    reference,
    run,
)
from tiny_video_denoisers import TOKENS
from tiny_video_texts import word_tokenizer
from torch import Tensor

from sldcore.errors import ConceptError
from sldcore.families import family_of
from sldcore.families.base import NO_OPTIONS
from sldcore.session import guard

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype:UserWarning")

WITH_A_LENGTH = ("CogVideoX", "LTX", "Mochi", "Allegro", "Wan", "HunyuanVideo")
UNEQUAL = ("a red knight on a meadow", "boat")
"""Prompts of unequal length, so that their masks differ."""
NEGATIVE = "a crowd at night"


TEMPLATE = {"template": "describe {} <|eot_id|>", "crop_start": 1}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "AnimateDiff": {"cross_attention_kwargs": {"scale": 0.5}},
    "AnimateDiffSDXL": {"clip_skip": 1},
    "CogVideoX": {"max_sequence_length": 24},
    "LTX": {"max_sequence_length": 24},
    "Latte": {"mask_feature": False},
    "Mochi": {"max_sequence_length": 24},
    "Allegro": {"max_sequence_length": 24},
    "Wan": {"max_sequence_length": 24},
    "HunyuanVideo": {"max_sequence_length": 24, "prompt_template": TEMPLATE},
}


@named(*OPTIONS)
def test_how_a_call_encodes_text_is_known_beforehand(case: Case) -> None:
    pipe = case.pipe()
    family = family_of(pipe)
    for more in ({}, OPTIONS[case.name]):
        with encodings(pipe) as seen:
            run(case, pipe, **more)
        expected = {family.text_options(pipe, each) for each in seen}
        assert {family.options_of_call(pipe, {**case.call, **more})} == expected
    assert {name for options in expected for name, _ in options.given} >= {*OPTIONS[case.name]} - {
        "cross_attention_kwargs"
    }


def encoding_with(case: Case, options: Mapping[str, Any]) -> Case:
    """The case with other options of text, for the pipeline and for the reference."""
    encode = type(case.pipe()).encode_prompt

    def text(pipe: Any, concept: str) -> Mapping[str, Tensor]:
        def overridden(*args: Any, **given: Any) -> Any:
            return encode(pipe, *args, **{**given, **options})

        return case.text(SimpleNamespace(encode_prompt=overridden), concept)

    return replace(case, call={**case.call, **options}, text=text)


@named(*WITH_A_LENGTH)
def test_concepts_are_encoded_as_long_as_prompts(case: Case) -> None:
    longer = encoding_with(case, {"max_sequence_length": 24})
    pipe = longer.pipe()
    with guard(pipe, policy()):
        guided = run(longer, pipe)
    close(guided, reference(longer))


@named("AnimateDiffSDXL")
def test_concepts_skip_layers_of_clip_as_prompts_do(case: Case) -> None:
    skipping = encoding_with(case, {"clip_skip": 1})
    pipe = skipping.pipe()
    with guard(pipe, policy()):
        guided = run(skipping, pipe)
    close(guided, reference(skipping))


@named(*FROM_TEXT)
def test_prompts_of_unequal_length_and_a_negative_prompt(case: Case) -> None:
    case = replace(case, call={**case.call, "negative_prompt": NEGATIVE})
    if case.name == "Latte":  # takes one negative prompt for all
        case = replace(case, call={**case.call, "negative_prompt": [NEGATIVE] * 2})
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe, UNEQUAL)
    close(guided, reference(case, UNEQUAL))


@named(*WITH_A_LENGTH)
def test_a_concept_that_is_too_long_for_the_call_is_split(case: Case) -> None:
    pipe = case.pipe()
    family = family_of(pipe)
    options = family.options_of_call(pipe, case.call)
    with guard(pipe, "medium") as session:
        rows = [row.text for row in session.concepts(options).rows]
        assert len(rows) > len(session.concepts(NO_OPTIONS).rows)
        assert all(family.count_tokens(pipe, row, options) <= TOKENS for row in rows)


@contextmanager
def lengths(pipe: Any) -> Iterator[list[int]]:
    """Tokens of the texts that a pipeline's tokenizer is to cut, each alone and uncut."""
    kind, seen = type(pipe.tokenizer), []
    call = kind.__call__

    def note(self: Any, text: Any = None, **options: Any) -> Any:
        if options.get("max_length"):
            each = [text] if isinstance(text, str) else text
            seen.extend(len(call(self, one, truncation=False).input_ids) for one in each)
        return call(self, text, **options)

    kind.__call__ = note
    try:
        yield seen
    finally:
        kind.__call__ = call


@named("CogVideoX", "LTX", "Latte", "Mochi", "Allegro", "Wan", "SkyReelsV2", "EasyAnimate")
def test_tokens_are_counted_as_the_pipeline_makes_them(case: Case) -> None:
    pipe = case.pipe()
    family = family_of(pipe)
    for text in ("blood, weapons", "a  Boat"):
        with lengths(pipe) as seen:
            family.encode(pipe, [text], NO_OPTIONS)
        assert seen == [family.count_tokens(pipe, text)]


def test_hunyuanvideos_template_is_counted_behind_a_text_and_not_in_front_of_it() -> None:
    case = BY_NAME["HunyuanVideo"]
    pipe = case.pipe()
    family = family_of(pipe)
    assert family.window(pipe, NO_OPTIONS) == 77
    own = family.options_of_call(pipe, {**case.call, "max_sequence_length": 50})
    assert family.window(pipe, own) == 50
    assert family.count_tokens(pipe, "blood, weapons", own) == 4  # with <|eot_id|>; CLIP has room to spare
    named_start = family.options_of_call(pipe, {"max_sequence_length": 50, "prompt_template": TEMPLATE})
    assert family.count_tokens(pipe, "blood, weapons", named_start) == 4
    unknown_start = {"max_sequence_length": 50, "prompt_template": {"template": "describe {} <|eot_id|>"}}
    with pytest.raises(ConceptError, match="crop_start"):
        family.count_tokens(pipe, "blood", family.options_of_call(pipe, unknown_start))


def test_hunyuanvideos_own_template_is_used_for_concepts_too() -> None:
    case = encoding_with(BY_NAME["HunyuanVideo"], {"prompt_template": TEMPLATE})
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe)
    close(guided, reference(case))
    assert not torch.allclose(guided, reference(BY_NAME["HunyuanVideo"]), atol=1e-2)


def test_texts_of_this_group_are_those_of_the_default_concept() -> None:
    unknown = word_tokenizer().unk_token_id
    assert unknown not in word_tokenizer()(texts.PACK.whole().text).input_ids
