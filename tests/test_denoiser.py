"""The hook on the denoiser: what is copied, what is swapped, what comes back."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sldcore.denoiser import DenoiserCall, forward_signature, install, remove
from sldcore.errors import GuidanceError, SessionError
from sldcore.types import Row


class Denoiser(nn.Module):
    """Has the arguments of a UNet."""

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any) -> Any:
        return (sample + encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1),)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


FAMILY: Any = SimpleNamespace(
    latents_argument="sample", text_arguments=("encoder_hidden_states",), cond_first=False
)
COND_FIRST: Any = SimpleNamespace(**{**vars(FAMILY), "cond_first": True})

BATCH = 3
ROWS = (Row(2, 0), Row(0, 1))
TEXTS = {"encoder_hidden_states": torch.full((2, 5, 8), 7.0)}


def numbered(*shape: int) -> Tensor:
    """Row i of the result is filled with i."""
    return torch.arange(float(shape[0])).view(-1, *(1,) * (len(shape) - 1)).expand(*shape).clone()


def bound(*args: Any, family: Any = FAMILY, **kwargs: Any) -> DenoiserCall:
    return DenoiserCall.bind(family, forward_signature(Denoiser()), args, kwargs)


def call(family: Any = FAMILY, **others: Any) -> DenoiserCall:
    return bound(numbered(6, 4, 2, 2), torch.tensor(3), numbered(6, 5, 8), family=family, **others)


def extended(made: DenoiserCall) -> dict[str, Any]:
    arguments = made.with_rows(made.conditional_rows(ROWS), TEXTS)
    return {**arguments.arguments, **arguments.arguments.get("others", {})}


def first_values(tensor: Tensor) -> list[float]:
    return tensor.flatten(1)[:, 0].tolist()


def test_concept_rows_copy_the_conditional_row_of_their_sample() -> None:
    assert first_values(extended(call())["sample"]) == [0, 1, 2, 3, 4, 5, 5, 3]


def test_with_the_conditional_half_first_it_is_copied_from_there() -> None:
    assert first_values(extended(call(COND_FIRST))["sample"]) == [0, 1, 2, 3, 4, 5, 2, 0]


def test_only_the_text_is_swapped() -> None:
    assert first_values(extended(call())["encoder_hidden_states"]) == [0, 1, 2, 3, 4, 5, 7, 7]


def test_a_row_for_every_sample_in_order_is_taken_as_a_slice() -> None:
    made = call()
    assert made.conditional_rows([Row(b, 0) for b in range(3)]) == slice(3, 6)


def test_nested_arguments_of_batch_shape_are_extended_and_others_left_alone() -> None:
    made = call(
        down_block_additional_residuals=(numbered(6, 2), numbered(6, 3, 1, 1)),
        added_cond_kwargs={"image_embeds": [numbered(6, 1, 4)], "time_ids": numbered(6, 6), "name": "x"},
        pair=Pair(numbered(6, 2), numbered(5, 2)),
        per_row_timestep=numbered(6),
        scale=0.5,
        nothing=None,
    )
    new = extended(made)
    assert [len(part) for part in new["down_block_additional_residuals"]] == [8, 8]
    assert isinstance(new["down_block_additional_residuals"], tuple)
    assert first_values(new["added_cond_kwargs"]["image_embeds"][0]) == [0, 1, 2, 3, 4, 5, 5, 3]
    assert len(new["added_cond_kwargs"]["time_ids"]) == 8
    assert new["added_cond_kwargs"]["name"] == "x"
    assert isinstance(new["pair"], Pair)
    assert (len(new["pair"].first), len(new["pair"].second)) == (8, 5)
    assert new["per_row_timestep"].tolist() == [0, 1, 2, 3, 4, 5, 5, 3]
    assert (new["scale"], new["nothing"], new["timestep"].ndim) == (0.5, None, 0)


def test_positional_and_keyword_calls_are_the_same_call() -> None:
    made = bound(
        sample=numbered(6, 4, 2, 2), timestep=torch.tensor(3), encoder_hidden_states=numbered(6, 5, 8)
    )
    assert torch.equal(extended(made)["sample"], extended(call())["sample"])
    arguments = call().with_rows(call().conditional_rows(ROWS), TEXTS)
    (out,) = Denoiser()(*arguments.args, **arguments.kwargs)
    assert len(out) == 8


@pytest.mark.parametrize(
    "output",
    [
        numbered(8, 4, 2, 2),
        (numbered(8, 4, 2, 2), numbered(8, 1), "x"),
        UNet2DConditionOutput(numbered(8, 4, 2, 2)),
    ],
    ids=["tensor", "tuple", "dataclass"],
)
def test_any_kind_of_output_is_split_cut_and_joined(output: Any) -> None:
    made = call()
    uncond, cond, concepts = made.split(output)
    assert [first_values(part) for part in (uncond, cond, concepts)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    for whole in (made.cut(output), made.join(output, uncond, cond)):
        assert type(whole) is type(output)
        prediction = whole if isinstance(whole, Tensor) else whole[0]
        assert first_values(prediction) == [0, 1, 2, 3, 4, 5]
        if isinstance(whole, tuple):
            assert len(whole[1]) == 6
            assert whole[2] == "x"


def test_halves_in_the_other_order_go_back_in_the_other_order() -> None:
    made = call(COND_FIRST)
    output = (numbered(8, 4, 2, 2),)
    uncond, cond, _ = made.split(output)
    assert first_values(cond) == [0, 1, 2]
    assert first_values(made.join(output, uncond, cond)[0]) == [0, 1, 2, 3, 4, 5]


def test_prompts_of_two_windows_get_concepts_repeated_to_their_length() -> None:
    made = bound(numbered(6, 4, 2, 2), torch.tensor(3), numbered(6, 10, 8))
    assert extended(made)["encoder_hidden_states"].shape == (8, 10, 8)


def test_attention_over_repeated_text_is_attention_over_it_once() -> None:
    query, text = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 5, 4)
    once = scaled_dot_product_attention(query, text, text)
    twice = scaled_dot_product_attention(query, text.repeat(1, 1, 2, 1), text.repeat(1, 1, 2, 1))
    assert torch.allclose(once, twice, atol=1e-6)


def test_prompts_of_a_broken_length_are_refused() -> None:
    made = bound(numbered(6, 4, 2, 2), torch.tensor(3), numbered(6, 7, 8))
    with pytest.raises(GuidanceError, match="7 tokens and the concept 5"):
        extended(made)


def test_an_odd_number_of_rows_is_refused() -> None:
    with pytest.raises(GuidanceError, match="5 rows, which are not two halves"):
        bound(numbered(5, 4, 2, 2), torch.tensor(3), numbered(5, 5, 8))


def test_a_call_without_text_is_refused() -> None:
    made = replace(call(), bound=inspect.signature(lambda sample, timestep: None).bind(numbered(6, 1), 3))
    with pytest.raises(GuidanceError, match="without encoder_hidden_states"):
        extended(made)


def test_the_hook_sends_calls_through_and_leaves_no_trace() -> None:
    module = Denoiser()
    arguments = (numbered(2, 4, 2, 2), torch.tensor(3), numbered(2, 5, 8))
    plain = module(*arguments)[0]
    registry = install(module, lambda forward, args, kwargs: (forward(*args, **kwargs)[0] + 1,))
    assert torch.equal(module(*arguments)[0], plain + 1)
    remove(registry)
    assert torch.equal(module(*arguments)[0], plain)
    assert not registry.hooks


def test_a_second_hook_on_one_denoiser_is_refused() -> None:
    module = Denoiser()
    registry = install(module, lambda forward, args, kwargs: forward(*args, **kwargs))
    with pytest.raises(SessionError, match="guarded by another session"):
        install(module, lambda forward, args, kwargs: forward(*args, **kwargs))
    remove(registry)
    remove(install(module, lambda forward, args, kwargs: forward(*args, **kwargs)))
