from __future__ import annotations

import pytest
import torch

from sldcore.catalogue import Provider
from sldcore.contributions import GuidanceMethod, WindowKind
from sldcore.errors import PluginError
from sldcore.policy_parts import SLDOptions
from sldcore.testing import catalogue_of, guided_samples, predictions, schedule
from sldcore.types import Row


def test_a_sample_has_the_same_numbers_wherever_it_stands() -> None:
    step = schedule(5).step(2)
    one = predictions(step, [Row(1, 0)], ["cat", "boat"])
    two = predictions(step, [Row(0, 1), Row(0, 0)], ["boat"])
    assert torch.equal(one.cond[1], two.cond[0])
    assert torch.equal(one.uncond[1], two.uncond[0])
    assert torch.equal(one.concepts[0], two.concepts[1])


def test_numbers_differ_between_steps_samples_parts_and_concepts() -> None:
    given = [
        predictions(schedule(5).step(index), [Row(0, 0), Row(0, 1)], ["cat", "boat"]) for index in (0, 1)
    ]
    rows = [row for each in given for part in (each.uncond, each.cond, each.concepts) for row in part]
    assert len({tuple(row.flatten().tolist()) for row in rows}) == len(rows)


def test_form_is_as_asked_and_rows_may_be_none() -> None:
    given = predictions(schedule(3).step(0), [], ["cat"], shape=(2, 3, 5), dtype=torch.float16)
    assert given.cond.shape == (1, 2, 3, 5)
    assert given.concepts.shape == (0, 2, 3, 5)
    assert given.cond.dtype == given.concepts.dtype == torch.float16


@pytest.mark.parametrize(
    ("prediction", "first", "last"), [("epsilon", 1, 1), ("v", 0, 0.968246), ("flow", 0, 0.75)]
)
def test_schedules_fall_from_pure_noise_with_the_factors_of_their_prediction(
    prediction: str, first: float, last: float
) -> None:
    plan = schedule(4, prediction)  # type: ignore[arg-type]
    assert plan.noise_levels == (1, 0.75, 0.5, 0.25)
    assert plan.epsilon_factors[0] == first
    assert plan.epsilon_factors[-1] == pytest.approx(last, abs=1e-6)


def test_samples_keep_what_is_said_of_them_at_another_place_of_the_batch() -> None:
    options = SLDOptions().model_dump()
    (alone,) = guided_samples("sld", options, ["boat"], 8)
    (_, there) = guided_samples("sld", options, ["cat", "boat"], 8, batch=["cat", "knight", "boat"])
    assert (alone.index, there.index) == (0, 2)
    assert (alone.concepts, alone.weights, alone.acting) == (there.concepts, there.weights, there.acting)


def test_fields_replace_what_is_said_of_every_sample() -> None:
    made = guided_samples("sld", SLDOptions().model_dump(), ["cat", "boat"], 4, acting=(1.0, 0.5, 0.0, 0.0))
    assert [sample.acting for sample in made] == [(1.0, 0.5, 0.0, 0.0)] * 2


def ramp(name: str = "ramp") -> WindowKind:
    return WindowKind(name=name, create=lambda options: lambda step: step.fraction)


def test_a_catalogue_holds_the_core_and_what_it_is_given() -> None:
    catalogue = catalogue_of(ramp(), provider=Provider("mine", "sld-mine", "1.0"))
    assert str(catalogue.entry(WindowKind, "ramp").provider) == "sld-mine 1.0"
    assert catalogue.find(GuidanceMethod, "sld").name == "sld"


@pytest.mark.parametrize("names", [("steps",), ("ramp", "ramp")])
def test_a_name_that_is_taken_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(
        PluginError, match=f"there are two contributions of kind 'window' with the name '{names[-1]}'"
    ):
        catalogue_of(*map(ramp, names))


def test_a_name_that_it_does_not_hold_says_how_to_ask_for_installed_plugins() -> None:
    with pytest.raises(
        PluginError,
        match=r"did you mean 'ramp'\? \(available: fraction, noise, ramp, steps\).*sldcore_plugins",
    ):
        catalogue_of(ramp()).find(WindowKind, "ramps")


def test_requirements_and_plugin_files_are_refused() -> None:
    from pathlib import Path

    catalogue = catalogue_of()
    with pytest.raises(PluginError, match=r"installed plugins .sld-mine>=1"):
        catalogue.require(["sld-mine>=1"])
    with pytest.raises(PluginError, match=r"does not load plugin files .mine.py"):
        catalogue.with_files([Path("mine.py")])
