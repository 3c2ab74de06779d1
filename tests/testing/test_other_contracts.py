"""Concept packs, families and commands that are wrong in one way fail the test that is meant for it, and no other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import typer

from sldcore.concepts import ConceptPack
from sldcore.contributions import Command, ConceptProvider, FamilyKind
from sldcore.families.sd import StableDiffusion
from sldcore.testing.check import case_of, outcomes
from sldcore.testing.fakes import FakePipeline


def failing(contribution: Any, **attributes: Any) -> set[str]:
    case = case_of(contribution, **attributes)
    return {outcome.test for outcome in outcomes(case) if outcome.failure}


# --- concept packs --------------------------------------------------------------------------------------------


def pack(**changes: Any) -> ConceptPack:
    content = {
        "id": "heights",
        "version": "1.0",
        "title": "Heights",
        "languages": ["en"],
        "setting": "tests",
        "licence": "CC0-1.0",
        "sources": ["made up for a test"],
        "limits": "says nothing of depths",
        "concepts": [{"id": "cliff", "text": "cliff, abyss"}, {"id": "tower", "text": "tower"}],
    }
    return ConceptPack.model_validate({**content, **changes})


def provider(load: Any) -> ConceptProvider:
    return ConceptProvider(name="heights", load=load)


def test_a_correct_pack_passes() -> None:
    assert failing(provider(pack)) == set()


def test_a_pack_of_another_id_fails() -> None:
    wrong = failing(provider(lambda: pack(id="depths")))
    assert "test_it_is_a_pack_of_the_name_that_it_is_provided_under" in wrong


def test_a_pack_that_differs_from_time_to_time_fails() -> None:
    assert failing(provider(lambda: pack(version=str(random.random())))) == {"test_it_is_the_same_every_time"}


def test_a_pack_without_sources_fails() -> None:
    loaded = provider(lambda: pack().model_copy(update={"sources": ()}))
    assert failing(loaded) == {"test_it_says_where_it_comes_from_and_what_it_cannot_do"}


def test_two_concepts_of_the_same_text_fail() -> None:
    twice = [{"id": "cliff", "text": "cliff"}, {"id": "rock", "text": "cliff"}]
    assert failing(provider(lambda: pack(concepts=twice))) == {"test_a_policy_can_use_all_of_it"}


def test_a_concept_of_weight_0_fails() -> None:
    idle = [{"id": "cliff", "text": "cliff", "weight": 0}]
    assert failing(provider(lambda: pack(concepts=idle))) == {"test_weights_do_something"}


def test_a_term_that_fits_no_text_encoder_fails() -> None:
    endless = [{"id": "cliff", "text": " ".join(f"word{number}" for number in range(90))}]
    assert failing(provider(lambda: pack(concepts=endless))) == {
        "test_its_texts_can_be_split_to_a_text_encoder"
    }


# --- families -------------------------------------------------------------------------------------------------


class Tiny(StableDiffusion):
    name = "tiny"


class CallsItselfOtherwise(Tiny):
    name = "huge"


class NamesAnArgumentThatIsNotThere(Tiny):
    text_arguments = ("encoder_hidden_states", "added_cond_kwargs")


class CutsTexts(Tiny):
    def count_tokens(self, pipe: Any, text: str, *options: Any) -> int:
        return min(super().count_tokens(pipe, text, *options), 77)


class EncodesTogether(Tiny):
    def encode(self, pipe: Any, texts: Sequence[str], options: Any) -> Any:
        encoded = super().encode(pipe, texts, options)
        return [{name: value + 0.01 * len(texts) for name, value in each.items()} for each in encoded]


class EncodesByChance(Tiny):
    def encode(self, pipe: Any, texts: Sequence[str], options: Any) -> Any:
        encoded = super().encode(pipe, texts, options)
        return [{name: value + 1e-6 * torch.rand(1) for name, value in each.items()} for each in encoded]


class NeverTheSameState(Tiny):
    def encoder_state(self, pipe: Any) -> tuple[Any, ...]:
        return (object(),)


class RisingNoise(Tiny):
    def schedule(self, pipe: Any) -> Any:
        from dataclasses import replace

        schedule = super().schedule(pipe)
        return replace(schedule, noise_levels=schedule.noise_levels[::-1])


class GuidesTowardsThePrompt(Tiny):
    """Puts the same text into concept rows as the prompt's, so that guidance has nothing to act on."""

    def encode(self, pipe: Any, texts: Sequence[str], options: Any) -> Any:
        prompt = "a red knight on a meadow"
        return super().encode(pipe, [f"{prompt}" if text == "blood" else text[:5] for text in texts], options)


FAMILIES: dict[str, tuple[type[Tiny], set[str]]] = {
    "calls itself otherwise": (CallsItselfOtherwise, {"test_it_calls_itself_what_it_is_called"}),
    "cuts texts": (CutsTexts, {"test_tokens_are_counted_with_begin_and_end_and_nothing_cut_off"}),
    "encodes texts together": (EncodesTogether, {"test_a_text_is_encoded_alone_as_beside_others"}),
    "encodes by chance": (EncodesByChance, {"test_a_text_is_encoded_the_same_every_time"}),
    "never the same state": (NeverTheSameState, {"test_a_text_is_encoded_the_same_every_time"}),
    "noise that rises": (RisingNoise, {"test_the_schedule_tells_every_call_and_its_noise_level"}),
    "a concept that is the prompt": (GuidesTowardsThePrompt, {"test_a_guarded_call_is_guided"}),
}


def family(create: type[Tiny], **fields: Any) -> FamilyKind:
    return FamilyKind(**{"name": "tiny", "pipelines": ("FakePipeline",), "create": create, **fields})


def test_a_correct_family_passes() -> None:
    assert failing(family(Tiny), pipeline=lambda self: FakePipeline()) == set()


@pytest.mark.parametrize(("create", "tests"), FAMILIES.values(), ids=FAMILIES)
def test_a_broken_family_fails_the_test_that_is_meant_for_it(create: type[Tiny], tests: set[str]) -> None:
    assert failing(family(create), pipeline=lambda self: FakePipeline()) == tests


def test_an_argument_that_the_denoiser_does_not_take_is_named() -> None:
    case = case_of(family(NamesAnArgumentThatIsNotThere), pipeline=lambda self: FakePipeline())
    said = {outcome.test: outcome.failure for outcome in outcomes(case)}
    expected = "FakeDenoiser.forward() does not take added_cond_kwargs"
    assert said["test_the_denoiser_takes_the_arguments_that_it_names"] == expected


def test_a_missing_method_is_named() -> None:
    class Half:
        name, latents_argument, text_arguments = "tiny", "sample", ("text",)
        listed_arguments, shared_arguments = (), ()
        apart, guidance_argument, needs_negative_prompt = False, "guidance_scale", False

    said = {outcome.test: outcome.failure for outcome in outcomes(case_of(family(Half)))}  # type: ignore[arg-type]
    assert said["test_it_has_the_attributes_and_methods_of_a_family"] == "the method denoisers() is missing"


def test_without_a_pipeline_the_rest_is_skipped() -> None:
    skipped = {outcome.test for outcome in outcomes(case_of(family(Tiny))) if outcome.skipped}
    assert "test_a_guarded_call_is_guided" in skipped


# --- commands -------------------------------------------------------------------------------------------------


def greet() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def hello(name: str) -> None:
        """Say hello."""
        typer.echo(f"hello {name}")

    return app


class Swallows:
    """A command that takes anything."""

    def make_context(self) -> None: ...

    def main(self, arguments: list[str], **options: Any) -> None:
        typer.echo("help" if arguments == ["--help"] else "done")
        raise SystemExit(0)


class Crashes(Swallows):
    def main(self, arguments: list[str], **options: Any) -> None:
        if arguments != ["--help"]:
            raise KeyError(arguments[0])
        super().main(arguments)


def test_a_correct_command_passes() -> None:
    assert failing(Command(name="greet", create=greet)) == set()
    assert failing(Command(name="greet", create=lambda: typer.main.get_command(greet()))) == set()


@pytest.mark.parametrize("create", [Swallows, Crashes])
def test_a_command_that_takes_any_option_fails(create: type[Swallows]) -> None:
    expected = {"test_a_wrong_option_is_a_message_and_exit_code_2"}
    assert failing(Command(name="greet", create=create)) == expected


def test_something_else_than_a_command_is_named() -> None:
    said = {
        outcome.test: outcome.failure for outcome in outcomes(case_of(Command(name="greet", create=dict)))
    }
    expected = "the factory gave dict, not a typer.Typer or a click command"
    assert said["test_it_is_a_typer_app_or_a_click_command"] == expected
