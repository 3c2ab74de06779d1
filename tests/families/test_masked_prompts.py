"""Prompts without one of their tokens, on the real classes of diffusers and transformers in miniature."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import tiny_images
import tiny_pipelines
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from sldcore.errors import GuidanceError
from sldcore.families import family_of
from sldcore.families.base import NO_OPTIONS, MasksTokens, TextOptions, TextSpace
from sldcore.families.sd import MASK
from sldcore.families.sdxl import StableDiffusionXL

PROMPT = "a red knight on a meadow"
PHRASES = ("hate", "obscene gestures", "illegal activity")
STATES, POOLED = "encoder_hidden_states", "added_cond_kwargs.text_embeds"


def build(name: str) -> Any:
    return (tiny_images.ALL | tiny_images.EXTRA)[name].build()


@pytest.fixture(scope="module")
def xl() -> Any:
    return build("StableDiffusionXLPipeline")


@pytest.fixture(scope="module")
def refiner() -> Any:
    return build("refiner")


def masked(pipe: Any, options: TextOptions = NO_OPTIONS, **prompts: str) -> tuple[TextSpace, ...]:
    return masking(pipe).masked_spaces(pipe, prompts, options)


def masking(pipe: Any) -> MasksTokens:
    family = family_of(pipe)
    assert isinstance(family, MasksTokens)
    return family


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, truncation=True, max_length=77).input_ids)


def padded(tokenizer: Any, ids: Sequence[int]) -> Tensor:
    """One row as the pipeline gives it to the text encoder, the whole window long."""
    return torch.tensor([[*ids, *[tokenizer.pad_token_id] * (77 - len(ids))]])


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# --- Stable Diffusion ------------------------------------------------------------------------------------------


def test_a_texts_vector_is_what_clip_pools_as_in_the_paper(pipe: Any) -> None:
    (space,) = masking(pipe).text_spaces(pipe, PHRASES, NO_OPTIONS)
    expected = [
        pipe.text_encoder(padded(pipe.tokenizer, ids_of(pipe.tokenizer, each))).pooler_output[0]
        for each in PHRASES
    ]
    assert (space.argument, space.columns) == (STATES, (0, 32))
    close(space.vectors, torch.stack(expected))


def test_each_token_of_a_prompt_is_masked_once_and_the_others_stay_in_their_places(pipe: Any) -> None:
    (space,) = masked(pipe, prompt=PROMPT)
    ids = ids_of(pipe.tokenizer, PROMPT)
    expected = []
    for place in range(1, len(ids) - 1):
        row = list(ids)
        row[place] = 0
        expected.append(pipe.text_encoder(padded(pipe.tokenizer, row)).pooler_output[0])
    close(space.vectors, torch.stack(expected))
    assert space.tokens == (1, len(ids) - 1)
    assert len({tuple(vector.tolist()) for vector in space.vectors}) == len(ids) - 2


def test_the_mask_is_the_exclamation_mark(pipe: Any) -> None:
    assert pipe.tokenizer.convert_ids_to_tokens(MASK) == "!"


def test_a_prompt_is_encoded_in_one_batch_of_one_row_per_token(pipe: Any) -> None:
    rows: list[int] = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    masked(pipe, prompt=PROMPT)
    masking(pipe).text_spaces(pipe, PHRASES, NO_OPTIONS)
    handle.remove()
    assert rows == [len(ids_of(pipe.tokenizer, PROMPT)) - 2, 3]


def test_what_the_pipeline_cuts_off_is_no_token_of_the_prompt(pipe: Any) -> None:
    (space,) = masked(pipe, prompt="knight " * 100)
    assert space.tokens == (1, 76)
    assert space.vectors.shape == (75, 32)


def test_an_empty_prompt_has_no_tokens(pipe: Any) -> None:
    (space,) = masked(pipe, prompt="")
    assert space.tokens == (1, 1)
    assert space.vectors.shape == (0, 32)


def test_vectors_are_of_the_layer_that_the_call_uses(pipe: Any) -> None:
    (space,) = masking(pipe).text_spaces(pipe, [PROMPT], TextOptions.of({"clip_skip": 1}))
    ids, encoder = ids_of(pipe.tokenizer, PROMPT), pipe.text_encoder
    states = encoder(padded(pipe.tokenizer, ids), output_hidden_states=True).hidden_states[-2]
    norm = next(module for name, module in encoder.named_modules() if name.endswith("final_layer_norm"))
    close(space.vectors[0], norm(states)[0, len(ids) - 1])
    (other,) = masking(pipe).text_spaces(pipe, [PROMPT], NO_OPTIONS)
    assert not torch.allclose(space.vectors, other.vectors, atol=1e-3)


def test_lora_in_the_text_encoder_has_the_calls_scale_and_its_own_afterwards(pipe: Any) -> None:
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, pipe.text_encoder)
    before = family_of(pipe).encoder_state(pipe)
    (space,) = masking(pipe).text_spaces(pipe, [PROMPT], TextOptions.of({"lora_scale": 0.5}))
    assert family_of(pipe).encoder_state(pipe) == before
    states, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False, lora_scale=0.5)
    (full,) = masking(pipe).text_spaces(pipe, [PROMPT], NO_OPTIONS)
    close(space.vectors[0], states[0, len(ids_of(pipe.tokenizer, PROMPT)) - 1])
    assert not torch.allclose(space.vectors, full.vectors, atol=1e-3)


def test_a_learned_word_of_several_tokens_is_masked_token_by_token(pipe: Any) -> None:
    own = tiny_pipelines.pipeline(**deepcopy(pipe.components))
    own.load_textual_inversion(torch.randn(3, 32), token="<style>")
    (space,) = masked(own, prompt="knight <style>")
    assert space.tokens == (1, 5)


def test_an_encoder_that_was_dropped_is_missed(pipe: Any) -> None:
    pipe.text_encoder = None
    with pytest.raises(GuidanceError, match="this StableDiffusionPipeline has none"):
        masked(pipe, prompt=PROMPT)


# --- Stable Diffusion XL ---------------------------------------------------------------------------------------


def test_both_encoders_have_their_columns_and_the_pooled_text_its_own_space(xl: Any) -> None:
    spaces = masking(xl).text_spaces(xl, [PROMPT, "hate"], NO_OPTIONS)
    assert [(space.argument, space.columns) for space in spaces] == [
        (STATES, (0, 32)),
        (STATES, (32, 64)),
        (POOLED, (0, 32)),
    ]
    assert spaces[2].tokens is None
    for number, text in enumerate((PROMPT, "hate")):
        states, _, pooled, _ = xl.encode_prompt(text, device="cpu", do_classifier_free_guidance=False)
        end = len(ids_of(xl.tokenizer, text)) - 1
        close(torch.cat([space.vectors[number] for space in spaces[:2]]), states[0, end])
        close(spaces[2].vectors[number], pooled[0])


def test_masked_prompts_of_both_encoders(xl: Any) -> None:
    spaces = masked(xl, prompt=PROMPT)
    ids = ids_of(xl.tokenizer, PROMPT)
    ids[2] = 0
    row = padded(xl.tokenizer, ids)
    first = xl.text_encoder(row, output_hidden_states=True).hidden_states[-2][0, len(ids) - 1]
    second = xl.text_encoder_2(row, output_hidden_states=True)
    close(spaces[0].vectors[1], first)
    close(spaces[1].vectors[1], second.hidden_states[-2][0, len(ids) - 1])
    close(spaces[2].vectors[1], second.text_embeds[0])
    assert [space.tokens for space in spaces] == [(1, 7), (1, 7), None]


def test_the_second_encoder_may_have_a_prompt_of_its_own(xl: Any) -> None:
    spaces = masked(xl, prompt=PROMPT, prompt_2="a boat")
    assert [len(space.vectors) for space in spaces] == [6, 2, 2]
    close(spaces[1].vectors, masked(xl, prompt="a boat")[1].vectors)


def test_a_skipped_layer_counts_from_the_last_but_one(xl: Any) -> None:
    spaces = masking(xl).text_spaces(xl, [PROMPT], TextOptions.of({"clip_skip": 1}))
    states, *_ = xl.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False, clip_skip=1)
    close(
        torch.cat([space.vectors[0] for space in spaces[:2]]),
        states[0, len(ids_of(xl.tokenizer, PROMPT)) - 1],
    )


def test_the_refiner_has_the_second_encoder_only(refiner: Any) -> None:
    spaces = masked(refiner, prompt=PROMPT, prompt_2="a boat")  # which its encode_prompt does not look at
    assert [(space.argument, space.columns, len(space.vectors)) for space in spaces] == [
        (STATES, (0, 32), 6),
        (POOLED, (0, 32), 6),
    ]
    assert [len(space.vectors) for space in masked(refiner, prompt="")] == [0, 0]


# --- others ----------------------------------------------------------------------------------------------------


def test_text_encoders_that_are_not_clips_are_refused() -> None:
    with pytest.raises(GuidanceError, match="this KolorsPipeline has ChatGLMModel"):
        StableDiffusionXL().masked_spaces(build("KolorsPipeline"), {"prompt": PROMPT}, NO_OPTIONS)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "PixArtSigmaPipeline", "HunyuanDiTPipeline"])
def test_other_families_do_not_say_that_they_can(name: str) -> None:
    assert not isinstance(family_of(build(name)), MasksTokens)
