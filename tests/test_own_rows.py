"""Which of the pipeline's own rows are evaluated, with which texts, and what answers for those that are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sldcore.denoiser import DenoiserCall, forward_signature
from sldcore.errors import GuidanceError
from sldcore.families.hidream import HiDream
from sldcore.families.pag import PERTURBED
from sldcore.families.pix2pix import PARTS
from sldcore.families.sd import StableDiffusion
from sldcore.families.sdxl import StableDiffusionXL
from sldcore.own_rows import FOLLOWED
from sldcore.types import OwnRow, Row

BATCH = 3
STATES = "encoder_hidden_states"
POOLED = "added_cond_kwargs.text_embeds"
LLAMA = "encoder_hidden_states_llama3"


class Sampled(HiDream):
    """HiDream with the argument names of this file's denoiser."""

    latents_argument = "sample"


class Denoiser(nn.Module):
    """Doubles each row."""

    def forward(
        self,
        sample: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_llama3: Tensor | None = None,
        added_cond_kwargs: Any = None,
    ) -> Tensor:
        return sample * 2


SIGNATURE = forward_signature(Denoiser())


def numbered(rows: int, *shape: int) -> Tensor:
    """Row r is full of r."""
    return torch.arange(float(rows)).view(-1, *(1,) * len(shape)).expand(rows, *shape).clone()


def call(family: Any = None, parts: tuple[str, ...] = ("uncond", "cond"), **more: Any) -> DenoiserCall:
    rows = BATCH * len(parts)
    given = {"sample": numbered(rows, 4, 2, 2), STATES: numbered(rows, 5, 8), **more}
    return DenoiserCall.bind(family or StableDiffusion(), SIGNATURE, (), given, parts)


def text(value: float, tokens: int = 5) -> dict[str, Tensor]:
    return {STATES: torch.full((1, tokens, 8), value)}


def evaluated(
    given: DenoiserCall, out: frozenset[int] = frozenset(), texts: Mapping[OwnRow, Any] | None = None
) -> dict[str, Any]:
    own = given.own_rows(out, texts or {})
    assert own is not None
    return dict(given.only_own(own).arguments)


def firsts(tensor: Tensor) -> list[float]:
    return [float(value) for value in tensor.flatten(1)[:, 0]]


def test_what_changes_nothing_is_no_change() -> None:
    assert call().own_rows(frozenset(), {}) is None


def test_rows_that_are_left_out_are_answered_with_another_samples_of_the_same_part() -> None:
    given = call()
    own = given.own_rows(frozenset({0, 2}), {})
    assert own is not None
    assert firsts(given.only_own(own).arguments["sample"]) == [1, 4]
    output = given.spread(given.evaluate(Denoiser(), given.only_own(own)), own)
    assert firsts(output) == [2, 2, 2, 8, 8, 8]


def test_where_all_samples_are_left_out_every_part_keeps_one_row() -> None:
    """PAG's attention takes its rows apart into its parts."""
    given = call(parts=("uncond", "cond", PERTURBED))
    assert firsts(evaluated(given, frozenset(range(BATCH)))["sample"]) == [0, 3, 6]


def test_concept_rows_are_those_of_their_samples_whoever_is_left_out() -> None:
    given = call()
    rows = (Row(2, 0), Row(1, 0))
    own = given.own_rows(frozenset({0}), {OwnRow(2, "uncond"): text(70)})
    bound = given.with_rows(given.conditional_rows(rows), {STATES: torch.full((2, 5, 8), 90.0)}, own)
    assert firsts(bound.arguments["sample"]) == [1, 2, 4, 5, 5, 4]
    assert firsts(bound.arguments[STATES]) == [1, 70, 4, 5, 90, 90]
    output = given.spread(given.evaluate(Denoiser(), bound), own)
    parts, concepts = given.predictions(output)
    assert [firsts(parts["uncond"]), firsts(parts["cond"])] == [[2, 2, 4], [8, 8, 10]]
    assert firsts(concepts) == [10, 8]


def test_texts_of_other_methods_may_be_for_other_arguments() -> None:
    pooled = {"text_embeds": numbered(6, 8)}
    given = call(StableDiffusionXL(), added_cond_kwargs=pooled)
    whole = {**text(70), POOLED: torch.full((1, 8), 71.0)}
    made = evaluated(given, texts={OwnRow(0, "cond"): text(60), OwnRow(1, "uncond"): whole})
    assert firsts(made[STATES]) == [0, 70, 2, 60, 4, 5]
    assert firsts(made["added_cond_kwargs"]["text_embeds"]) == [0, 71, 2, 3, 4, 5]
    assert firsts(pooled["text_embeds"]) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("parts", [("uncond", "cond", PERTURBED), PARTS])
def test_a_third_part_has_the_text_that_pipelines_give_it(parts: tuple[str, ...]) -> None:
    assert parts[2] in FOLLOWED
    made = evaluated(call(parts=parts), texts={OwnRow(1, FOLLOWED[parts[2]]): text(70)})
    changed = [index for index, value in enumerate(firsts(made[STATES])) if value == 70]
    assert changed == [parts.index(FOLLOWED[parts[2]]) * BATCH + 1, 2 * BATCH + 1]


def test_if_all_rows_get_other_texts_these_may_have_any_length() -> None:
    given = call(parts=("uncond",))
    made = evaluated(given, texts={OwnRow(index, "uncond"): text(70 + index, 7) for index in range(BATCH)})
    assert made[STATES].shape == (BATCH, 7, 8)
    assert firsts(made[STATES]) == [70, 71, 72]
    with pytest.raises(GuidanceError, match="has 5 tokens and the concept 7"):
        evaluated(given, texts={OwnRow(0, "uncond"): text(70, 7)})


@pytest.mark.parametrize("layers", [2, 6])
def test_rows_that_are_not_in_front_are_found(layers: int) -> None:
    """Llama's states of HiDream are [layers, rows, L, D]; with as many layers as rows, a text still tells."""
    states = numbered(6, layers, 5, 8).transpose(0, 1)
    arguments = {"sample": numbered(6, 4, 2, 2), LLAMA: states}
    given = DenoiserCall.bind(Sampled(), SIGNATURE, (), arguments)
    other = {LLAMA: torch.full((1, layers, 5, 8), 70.0)}
    made = evaluated(given, frozenset({0}), {OwnRow(1, "uncond"): other})
    assert made[LLAMA].shape == (layers, 4, 5, 8)
    assert firsts(made[LLAMA].transpose(0, 1)) == [70, 2, 4, 5]
    if layers != 6:
        assert firsts(evaluated(given, frozenset({2}))[LLAMA].transpose(0, 1)) == [0, 1, 3, 4]
