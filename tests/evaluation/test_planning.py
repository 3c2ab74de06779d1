from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from tiny_runs import MAX, OFF, benchmark, plan, settings

from sldcore.errors import ConfigurationError
from sldcore.evaluation.planning import Method, Plan
from sldcore.evaluation.records import Item
from sldcore.policy import SafetyPolicy

ITEM = Item("0", "a red knight", 7)


def key(method: Method = MAX, item: Item = ITEM, seed: int = 7, **changes: Any) -> str:
    return plan(**changes).key_of(method, item, seed)


DIFFERENT = {
    "model": key(model="other"),
    "revision": key(revision="r"),
    "weights": key(weights="4567"),
    "steps": key(steps=4),
    "scheduler": key(scheduler="PNDMScheduler"),
    "guidance": key(guidance_scale=5.0),
    "the item's guidance": key(item=replace(ITEM, guidance_scale=5.5)),
    "width": key(width=64),
    "height": key(height=64),
    "the item's size": key(item=replace(ITEM, width=96)),
    "dtype": key(dtype="bfloat16"),
    "torch": key(versions={"sldcore": "1", "torch": "2.1", "diffusers": "3", "transformers": "4"}),
    "policy": key(Method("max", SafetyPolicy.preset("strong"))),
    "negative prompt": key(replace(MAX, arguments={"negative_prompt": "x"})),
    "what a policy's names stand for": key(replace(MAX, resolved={"concepts": ["other text"]})),
    "prompt": key(item=replace(ITEM, prompt="a blue knight")),
    "seed": key(seed=8),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_key_depends_on(what: str) -> None:
    others = [other for name, other in DIFFERENT.items() if name != what]
    assert DIFFERENT[what] not in [key(), *others]


def test_a_key_does_not_depend_on_names_categories_or_other_libraries() -> None:
    other = Method("mine", SafetyPolicy.preset("max").replace(name="mine"))
    item = Item("99", "a red knight", 7, ("hate",))
    versions = {**settings().versions, "numpy": "6"}
    assert key(other, item, images=3, versions=versions) == key()


def test_keys_stay_what_they_are() -> None:
    assert key(OFF) == "3b7e42e11a87286eaa9c93dba5c142c7b049cb7d4cca03f6bcd5af36c1dfd7f5"


def test_a_run_can_ignore_the_guidance_of_items() -> None:
    item = replace(ITEM, guidance_scale=5.5)
    assert key(item=item, own_guidance=False) == key(own_guidance=False)


def test_batches_hold_every_sample_once_and_methods_side_by_side() -> None:
    whole = plan(images=3)
    batches = whole.batches()
    identities = [wanted.identity for batch in batches for wanted in batch.members]
    assert len(identities) == len(set(identities)) == whole.samples == 30
    assert [batch.method.name for batch in batches[:4]] == ["off", "max", "off", "max"]
    assert [wanted.identity[1:3] for wanted in batches[0].wanted] == [
        wanted.identity[1:3] for wanted in batches[1].wanted
    ]


def test_pictures_of_one_item_and_neighbouring_items_have_different_seeds() -> None:
    seeds = [wanted.seed for batch in plan(OFF, images=4).batches() for wanted in batch.members]
    assert len(set(seeds)) == 20


def test_a_batch_has_one_size_and_one_guidance_scale() -> None:
    items = tuple(
        Item(str(n), f"p{n}", n, guidance_scale=(None, 5.0)[n % 2], width=(None, 64, 96)[n % 3])
        for n in range(12)
    )
    batches = plan(OFF, items=items, batch_size=5).batches()
    for batch in batches:
        for wanted in batch.wanted:
            own = wanted.item.guidance_scale or 4.0, wanted.item.width
            assert (batch.guidance_scale, batch.width) == own
    assert len(list(chain.from_iterable(batch.wanted for batch in batches))) == 12


def test_samples_with_one_key_are_made_once() -> None:
    items = (Item("a", "x", 1), Item("b", "y", 1), Item("c", "x", 1), Item("d", "x", 1))
    twice = Method("again", SafetyPolicy.preset("off").replace(name="again"))
    batches = plan(OFF, twice, items=items).batches()
    made = [wanted.key for batch in batches for wanted in batch.wanted]
    assert len(made) == len(set(made)) == 2
    assert sum(len(batch.members) for batch in batches) == 8
    for batch in batches:
        assert {twin.key for twin in batch.twins} <= {wanted.key for wanted in batch.wanted}


def test_a_batch_does_not_change_when_methods_are_added() -> None:
    before = {batch.wanted for batch in plan(OFF).batches()}
    assert before <= {batch.wanted for batch in plan(OFF, MAX).batches()}


BAD = {
    "an id twice": ((Item("a", "x", 1), Item("a", "y", 2)), {}, "'a' is given twice"),
    "an empty prompt": ((Item("a", "  ", 1),), {}, "empty prompt"),
    "a prompt of 10 MB": ((Item("a", "x" * 10_000_000, 1),), {}, "10,000,000 characters"),
    "a negative seed": ((Item("a", "x", -1),), {}, "seed -1"),
    "a seed too high for all pictures": ((Item("a", "x", 2**63 - 1),), {}, "seed 9223372036854775807"),
    "a row without guidance": ((Item("a", "x", 1, guidance_scale=1.0),), {}, "--fixed-guidance"),
    "guidance that is no number": ((Item("a", "x", 1, guidance_scale=float("nan")),), {}, "nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_plan_refuses(case: str) -> None:
    items, changes, message = BAD[case]
    with pytest.raises(ConfigurationError, match=message) as caught:
        plan(items=items, **changes).check()
    assert len(str(caught.value)) < 400


def test_a_plan_refuses_two_methods_of_one_name() -> None:
    other = Method("max", SafetyPolicy.preset("strong"))
    with pytest.raises(ConfigurationError, match="method 'max' is given twice"):
        plan(MAX, other).check()


def test_a_plan_refuses_to_make_nothing() -> None:
    with pytest.raises(ConfigurationError, match="nothing to make"):
        Plan(settings(), (), (benchmark(),), 2).check()
