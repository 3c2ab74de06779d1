"""The seam: what is appended to a denoiser's call, what is handed back, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from sldcore.denoiser import DenoiserCall, forward_signature, install, remove
from sldcore.errors import GuidanceError, SessionError
from sldcore.families.sd import StableDiffusion
from sldcore.types import Row

BATCH = 3
ROWS = (Row(2, 0), Row(0, 1))


class CondFirst(StableDiffusion):
    """As AuraFlow and Stable Cascade call their denoisers."""

    order = ("cond", "uncond")


class Residuals(NamedTuple):
    """Something like ControlNet's output."""

    down: list[Tensor]
    mid: Tensor


class Denoiser(nn.Module):
    """Takes what a UNet takes."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None,
        added: Any = None,
        return_dict: bool = True,
        **more: Any,
    ) -> Tensor:
        return sample * 2


SIGNATURE = forward_signature(Denoiser())


def numbered(batch: int = BATCH, *shape: int, offset: int = 0) -> Tensor:
    """A tensor [2B, *shape] whose row r is full of r + offset."""
    sizes = shape or (4, 2, 2)
    column = torch.arange(2.0 * batch).view(-1, *(1,) * len(sizes)) + offset
    return column.expand(2 * batch, *sizes).clone()


def texts(rows: Sequence[Row] = ROWS, tokens: int = 5) -> dict[str, Tensor]:
    """Concept texts whose states are 100 for concept 0 and 101 for concept 1."""
    column = torch.tensor([100.0 + row.concept for row in rows]).view(-1, 1, 1)
    return {"encoder_hidden_states": column.expand(-1, tokens, 3)}


def bound(*args: Any, family: Any = None, **kwargs: Any) -> DenoiserCall:
    family = family or StableDiffusion()
    return DenoiserCall.bind(family, SIGNATURE, args, kwargs, family.order)


def plain(family: Any = None, batch: int = BATCH, **kwargs: Any) -> DenoiserCall:
    call = {
        "sample": numbered(batch),
        "timestep": torch.tensor(1),
        "encoder_hidden_states": numbered(batch, 5, 3),
    }
    return bound(family=family, **{**call, **kwargs})


def extended(call: DenoiserCall, rows: Sequence[Row] = ROWS, tokens: int = 5) -> dict[str, Any]:
    return dict(call.with_rows(call.conditional_rows(rows), texts(rows, tokens)).arguments)


def row_values(tensor: Tensor) -> list[float]:
    """The number that each row is full of."""
    flat = tensor.flatten(1)
    assert (flat == flat[:, :1]).all()
    return [float(value) for value in flat[:, 0]]


# --- arguments -------------------------------------------------------------------------------------------------


def test_a_concept_row_is_its_samples_conditional_row_with_the_text_swapped() -> None:
    arguments = extended(plain())
    assert row_values(arguments["sample"]) == [0, 1, 2, 3, 4, 5, 5, 3]
    assert row_values(arguments["encoder_hidden_states"]) == [0, 1, 2, 3, 4, 5, 100, 101]


def test_the_conditional_half_comes_first_if_the_family_says_so() -> None:
    arguments = extended(plain(family=CondFirst()))
    assert row_values(arguments["sample"]) == [0, 1, 2, 3, 4, 5, 2, 0]


@pytest.mark.parametrize("family", [StableDiffusion(), CondFirst()])
def test_one_row_for_every_sample_in_order_copies_the_conditional_half(family: Any) -> None:
    everyone = tuple(Row(sample, 0) for sample in range(BATCH))
    call = plain(family=family)
    half = [0, 1, 2] if family.order[0] == "cond" else [3, 4, 5]
    assert isinstance(call.conditional_rows(everyone).index, slice)
    assert row_values(extended(call, everyone)["sample"]) == [0, 1, 2, 3, 4, 5, *half]


def test_a_sample_may_have_several_rows_and_others_none() -> None:
    rows = (Row(1, 0), Row(1, 1), Row(1, 0))
    arguments = extended(plain(), rows)
    assert row_values(arguments["sample"])[6:] == [4, 4, 4]
    assert row_values(arguments["encoder_hidden_states"])[6:] == [100, 101, 100]


def test_batch_shaped_tensors_are_extended_at_any_depth() -> None:
    added = {
        "time_ids": numbered(BATCH, 6),
        "images": [numbered(BATCH, 1, 4, offset=10), (numbered(BATCH, 2, offset=20),)],
        "residuals": Residuals([numbered(BATCH, 8, 1, 1, offset=30)], numbered(BATCH, 8, 1, 1, offset=40)),
    }
    grown = extended(plain(added=added))["added"]
    assert row_values(grown["time_ids"])[6:] == [5, 3]
    assert row_values(grown["images"][0])[6:] == [15, 13]
    assert row_values(grown["images"][1][0])[6:] == [25, 23]
    assert row_values(grown["residuals"].down[0])[6:] == [35, 33]
    assert row_values(grown["residuals"].mid)[6:] == [45, 43]


def test_nested_arguments_keep_their_types_and_what_is_not_batch_shaped() -> None:
    odd = numbered()[: 2 * BATCH - 1]
    added = {"scale": 0.5, "none": None, "odd": odd, "pair": (odd,), "residuals": Residuals([], odd)}
    grown = extended(plain(added=added))["added"]
    assert (grown["scale"], grown["none"]) == (0.5, None)
    assert grown["odd"] is odd and grown["pair"][0] is odd
    assert isinstance(grown["pair"], tuple) and isinstance(grown["residuals"], Residuals)


def test_a_timestep_for_all_is_left_alone_and_one_per_row_is_extended() -> None:
    for_all, single = torch.tensor(7.0), torch.tensor([7.0])
    assert extended(plain(timestep=for_all))["timestep"] is for_all
    assert extended(plain(timestep=single))["timestep"] is single
    per_row = extended(plain(timestep=torch.arange(6.0)))["timestep"]
    assert per_row.tolist() == [0, 1, 2, 3, 4, 5, 5, 3]


def test_the_callers_own_tensors_are_not_changed() -> None:
    sample, added = numbered(), [numbered(BATCH, 2)]
    extended(plain(sample=sample, added=added))
    assert len(sample) == len(added[0]) == 2 * BATCH


def test_positional_and_keyword_calls_are_extended_alike() -> None:
    parts = (numbered(), torch.tensor(1), numbered(BATCH, 5, 3), [numbered(BATCH, 2)])
    names = ("sample", "timestep", "encoder_hidden_states", "added")
    by_position = bound(*parts, return_dict=False)
    by_name = bound(**dict(zip(names, parts, strict=True)), return_dict=False)
    one, other = extended(by_position), extended(by_name)
    assert one.keys() == other.keys()
    for name in names:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_extended_arguments_call_the_denoiser_as_they_are() -> None:
    call = bound(
        numbered(), torch.tensor(1), encoder_hidden_states=numbered(BATCH, 5, 3), extra=numbered(BATCH, 2)
    )
    arguments = call.with_rows(call.conditional_rows(ROWS), texts())
    assert row_values(arguments.kwargs["extra"])[6:] == [5, 3]
    assert row_values(Denoiser()(*arguments.args, **arguments.kwargs))[6:] == [10, 6]


def test_the_concepts_text_takes_the_type_of_the_prompts() -> None:
    states = numbered(BATCH, 5, 3).half()
    assert extended(plain(encoder_hidden_states=states))["encoder_hidden_states"].dtype == torch.float16


def test_a_call_with_an_odd_number_of_rows_is_refused() -> None:
    with pytest.raises(GuidanceError, match=r"5 rows, which are not 2 equal parts.*classifier-free guidance"):
        plain(sample=numbered()[:5])


@pytest.mark.parametrize("given", [{"encoder_hidden_states": None}, {}])
def test_a_call_without_text_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(GuidanceError, match="without encoder_hidden_states, so no concept can be put there"):
        call = plain(**given) if given else plain()
        if not given:
            del call.bound.arguments["encoder_hidden_states"]
        extended(call)


# --- prompts of several windows ---------------------------------------------------------------------------------


def test_a_concept_is_repeated_to_the_length_of_a_prompt_of_several_windows() -> None:
    call = plain(encoder_hidden_states=numbered(BATCH, 15, 3))
    concept = torch.arange(2 * 5 * 3.0).view(2, 5, 3)
    source = call.conditional_rows(ROWS)
    states = call.with_rows(source, {"encoder_hidden_states": concept}).arguments["encoder_hidden_states"]
    assert states.shape == (8, 15, 3)
    for window in states[6:].split(5, dim=1):
        assert torch.equal(window, concept)


def test_attention_over_a_repeated_concept_is_attention_over_it_once() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 8, generator=draw) for length in (16, 5, 5))
    once = nn.functional.scaled_dot_product_attention(query, key, value)
    call = plain(batch=1, encoder_hidden_states=torch.zeros(2, 15, 4 * 8))

    def repeated(states: Tensor) -> Tensor:
        concept = states.transpose(1, 2).flatten(2)  # [2, 5, heads * D]
        rows = (Row(0, 0), Row(0, 1))
        grown = call.with_rows(call.conditional_rows(rows), {"encoder_hidden_states": concept})
        appended: Tensor = grown.arguments["encoder_hidden_states"][2:]
        return appended.unflatten(2, (4, 8)).transpose(1, 2)

    assert repeated(key).shape == (2, 4, 15, 8)
    thrice = nn.functional.scaled_dot_product_attention(query, repeated(key), repeated(value))
    torch.testing.assert_close(thrice, once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [4, 7, 13])
def test_a_prompt_that_is_no_whole_number_of_windows_long_is_refused(tokens: int) -> None:
    call = plain(encoder_hidden_states=numbered(BATCH, tokens, 3))
    with pytest.raises(GuidanceError, match=rf"{tokens} tokens and the concept 5.*whole number"):
        extended(call)


# --- outputs ---------------------------------------------------------------------------------------------------


class WithMore(BaseOutput):
    """An output with a second tensor."""

    sample: Tensor
    features: Tensor | None = None
    loss: float = 0.0


def outputs(prediction: Tensor) -> dict[str, Any]:
    return {
        "tensor": prediction,
        "tuple": (prediction,),
        "longer tuple": (prediction, numbered(BATCH + 1, 2), "kept", None),
        "unet output": UNet2DConditionOutput(sample=prediction),
    }


FORMS = tuple(outputs(torch.zeros(8)))


def first(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor


def split(call: DenoiserCall, output: Any) -> list[list[float]]:
    """Unconditional, conditional and concept rows of an output."""
    parts, concepts = call.predictions(output)
    return [row_values(parts["uncond"]), row_values(parts["cond"]), row_values(concepts)]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_output_is_split_into_its_three_parts(form: str) -> None:
    assert split(plain(), outputs(numbered(BATCH + 1))[form]) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_an_output_with_the_conditional_half_first_is_split_the_other_way_round() -> None:
    assert split(plain(family=CondFirst()), numbered(BATCH + 1)) == [[3, 4, 5], [0, 1, 2], [6, 7]]


def test_an_output_without_concept_rows_gives_an_empty_third_part() -> None:
    assert plain().predictions(numbered())[1].shape == (0, 4, 2, 2)


@pytest.mark.parametrize("form", FORMS)
def test_cut_takes_the_concept_rows_away_and_keeps_the_form(form: str) -> None:
    output = outputs(numbered(BATCH + 1))[form]
    cut = plain().cut(output)
    assert type(cut) is type(output)
    assert row_values(first(cut)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("family", "order"), [(StableDiffusion(), ("uncond", "cond")), (CondFirst(), ("cond", "uncond"))]
)
def test_join_puts_the_halves_back_in_the_familys_order_and_keeps_the_form(
    form: str, family: Any, order: tuple[str, ...]
) -> None:
    output = outputs(numbered(BATCH + 1))[form]
    parts = {"uncond": torch.full((BATCH, 4, 2, 2), -1.0), "cond": torch.full((BATCH, 4, 2, 2), -2.0)}
    joined = plain(family=family).join(output, parts)
    assert type(joined) is type(output)
    assert torch.equal(first(joined), torch.cat([parts[name] for name in order]))


def test_further_tensors_of_an_output_lose_their_concept_rows_too() -> None:
    parts = {"uncond": numbered()[:3], "cond": numbered()[3:]}
    longer = plain().join(outputs(numbered(BATCH + 1))["longer tuple"], parts)
    assert row_values(longer[1]) == [0, 1, 2, 3, 4, 5]
    assert longer[2:] == ("kept", None)


def test_what_is_no_prediction_is_refused() -> None:
    with pytest.raises(GuidanceError, match="returned str instead of a prediction"):
        plain().predictions("noise")


# --- putting the hook on and taking it off ----------------------------------------------------------------------


def call_of(module: nn.Module) -> Tensor:
    result: Tensor = module(numbered(), torch.tensor(1), encoder_hidden_states=None)
    return result


def test_an_installed_hook_gets_every_call_with_the_original_forward() -> None:
    module, seen = Denoiser(), []

    def intercept(forward: Any, args: Any, kwargs: Any) -> Any:
        seen.append((len(args), sorted(kwargs)))
        return forward(*args, **kwargs) + 1

    registry = install(module, intercept)
    assert torch.equal(call_of(module), numbered() * 2 + 1)
    assert seen == [(2, ["encoder_hidden_states"])]
    remove(registry)


def test_a_removed_hook_leaves_the_denoisers_own_forward() -> None:
    module = Denoiser()
    own = module.forward
    remove(install(module, lambda forward, args, kwargs: None))
    assert module.forward == own
    assert torch.equal(call_of(module), numbered() * 2)


def test_a_forward_that_somebody_replaced_before_is_what_stays() -> None:
    module = Denoiser()
    replacement = module.forward = lambda *args, **kwargs: torch.zeros(1)  # type: ignore[method-assign]
    remove(install(module, lambda forward, args, kwargs: forward(*args, **kwargs)))
    assert module.forward is replacement


def test_a_second_hook_is_refused_and_the_first_goes_on() -> None:
    module = Denoiser()
    registry = install(module, lambda forward, args, kwargs: "first")
    with pytest.raises(
        SessionError, match="this Denoiser is guarded by another session already; leave that one"
    ):
        install(module, lambda forward, args, kwargs: "second")
    assert module(numbered()) == "first"
    remove(registry)
    remove(install(module, lambda forward, args, kwargs: "third"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_hook_can_be_removed_after_the_denoiser_raised(error: type[BaseException]) -> None:
    def intercept(forward: Any, args: Any, kwargs: Any) -> Any:
        raise error("in the middle")

    module = Denoiser()
    registry = install(module, intercept)
    with pytest.raises(error):
        call_of(module)
    remove(registry)
    assert torch.equal(call_of(module), numbered() * 2)


def test_removing_twice_does_no_harm() -> None:
    module = Denoiser()
    registry = install(module, lambda forward, args, kwargs: None)
    remove(registry)
    remove(registry)
    assert torch.equal(call_of(module), numbered() * 2)


def test_the_signature_is_that_of_the_module_behind_torch_compile() -> None:
    names = ["sample", "timestep", "encoder_hidden_states", "added", "return_dict", "more"]
    assert list(forward_signature(torch.compile(Denoiser(), backend="eager")).parameters) == names


def test_a_compiled_denoiser_is_hooked_and_freed_like_any_other() -> None:
    """Compiled around the module, as torch.compile does, and in place, as diffusers' ``compile`` does."""
    in_place = Denoiser()
    in_place.compile(backend="eager")
    around: Any = torch.compile(Denoiser(), backend="eager")
    for module in (in_place, around):
        assert torch.equal(call_of(module), numbered() * 2)
        registry = install(module, lambda forward, args, kwargs: forward(*args, **kwargs) + 1)
        assert torch.equal(call_of(module), numbered() * 2 + 1)
        remove(registry)
        assert torch.equal(call_of(module), numbered() * 2)
