from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import MAX, OFF, plan, sample

from sldcore.errors import ConfigurationError
from sldcore.evaluation.methods import methods_named
from sldcore.evaluation.model_identity import identify
from sldcore.evaluation.planning import Method, Plan, Wanted
from sldcore.evaluation.records import Item, Sample
from sldcore.evaluation.run_folder import RunFolder
from sldcore.evaluation.running import Spread
from sldcore.evaluation.workers import Share, missing_batches, require_same_place
from sldcore.policy import SafetyPolicy
from sldcore.provenance import library_versions


@pytest.mark.parametrize("shares", [2, 3, 4, 6])
def test_every_share_has_all_methods_and_about_as_much_to_do(shares: int) -> None:
    batches = plan(images=12).batches()
    methods = {batch.method.name for batch in batches}
    dealt = [Share.of(f"{part + 1}/{shares}", {}).batches(batches) for part in range(shares)]
    assert all({batch.method.name for batch in own} == methods for own in dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= len(methods)


def test_shards_and_ranks_share_all_batches_without_overlap() -> None:
    batches = plan(images=4).batches()
    taken = [
        batch.number
        for shard in ("1/3", "2/3", "3/3")
        for rank in ("0", "1")
        for batch in Share.of(shard, {"RANK": rank, "WORLD_SIZE": "2"}).batches(batches)
    ]
    assert sorted(taken) == list(range(len(batches)))
    assert len(taken) > 6


def test_workers_have_journals_of_their_own() -> None:
    names = {
        Share.of(shard, {"RANK": rank, "WORLD_SIZE": "2"}).worker
        for shard in ("1/2", "2/2")
        for rank in ("0", "1")
    }
    assert len({*names, Share.of(None, {}).worker, Share.of("1/2", {}).worker}) == 6


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0", "1/2/3"])
def test_a_shard_that_makes_no_sense_is_refused(shard: str) -> None:
    with pytest.raises(ConfigurationError, match=r"i/n with i from 1 to n"):
        Share.of(shard, {})


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "x"},
        {"WORLD_SIZE": "two"},
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        Share.of(None, environment)


@pytest.mark.parametrize(
    "environment",
    [{"ACCELERATE_MIXED_PRECISION": "no"}, {"LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "1", "RANK": "0"}],
)
def test_a_launcher_that_started_one_process_is_spoken_of(environment: dict[str, str]) -> None:
    assert "one process only" in Share.of(None, environment).warning


@pytest.mark.parametrize("environment", [{}, {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "RANK": "1"}])
def test_otherwise_nothing_is_odd(environment: dict[str, str]) -> None:
    assert Share.of(None, environment).warning == ""


@pytest.mark.parametrize(
    ("spread", "world"),
    [
        (Spread(processes=2), 2),
        (Spread(ray_actors=2), 2),
        (Spread(processes=2, ray_actors=2), 1),
        (Spread(processes=0), 1),
        (Spread(ray_actors=-1), 1),
    ],
)
def test_ways_of_spreading_that_do_not_go_together_are_refused(spread: Spread, world: int) -> None:
    with pytest.raises(ConfigurationError):
        spread.check(Share(world=world))


def made(folder: RunFolder, wanted: Wanted, picture: bool = True, **changes: str) -> Sample:
    found = sample(wanted.key, wanted.item.id, wanted.method, image=wanted.image, **changes)
    if picture and found.file:
        folder.picture_of(found).parent.mkdir(parents=True, exist_ok=True)
        folder.picture_of(found).write_bytes(b"x")
    folder.add_samples("a", [found])
    return found


def numbers(folder: RunFolder, **options: bool) -> list[int]:
    return [batch.number for batch in missing_batches(folder, plan().batches(), **options)]


def test_batches_that_are_there_are_not_missing(tmp_path: Path) -> None:
    folder, batches = RunFolder(tmp_path), plan().batches()
    assert numbers(folder) == list(range(len(batches)))
    for wanted in batches[1].wanted:
        made(folder, wanted)
    assert numbers(folder) == [0, *range(2, len(batches))]


def test_a_batch_of_which_one_sample_lacks_is_made_whole(tmp_path: Path) -> None:
    folder, batches = RunFolder(tmp_path), plan().batches()
    made(folder, batches[0].wanted[0])
    assert batches[0] in missing_batches(folder, batches)


def test_a_picture_that_was_lost_is_made_again(tmp_path: Path) -> None:
    folder, batches = RunFolder(tmp_path), plan().batches()
    for wanted in batches[0].wanted:
        last = made(folder, wanted)
    folder.picture_of(last).unlink()
    assert 0 in numbers(folder)


def test_a_sample_made_with_another_key_does_not_count(tmp_path: Path) -> None:
    folder, batches = RunFolder(tmp_path), plan(steps=9).batches()
    for wanted in batches[0].wanted:
        made(folder, wanted)
    assert 0 in numbers(folder)


def test_errors_are_kept_unless_they_are_to_be_tried_again(tmp_path: Path) -> None:
    folder, batches = RunFolder(tmp_path), plan().batches()
    for wanted in batches[0].wanted:
        made(folder, wanted, errors=("NaN",), file="")  # type: ignore[arg-type]
    assert 0 not in numbers(folder)
    assert 0 in numbers(folder, retry_errors=True)


def test_a_method_with_the_same_pictures_costs_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for batch in plan(OFF).batches():
        for wanted in batch.wanted:
            made(folder, wanted)
    again = Method("again", SafetyPolicy.preset("off").replace(name="again"))
    missing = missing_batches(folder, plan(OFF, again, MAX).batches())
    assert {batch.method.name for batch in missing} == {"max"}
    found = [each for each in folder.samples() if each.method == "again"]
    assert [each.item for each in found] == ["0", "1", "2", "3", "4"]


def test_an_item_that_repeats_another_costs_nothing(tmp_path: Path) -> None:
    folder, items = RunFolder(tmp_path), (Item("a", "x", 1), Item("b", "x", 1, ("hate",)))
    batches = plan(OFF, items=items).batches()
    made(folder, batches[0].wanted[0])
    assert missing_batches(folder, batches) == []
    assert {(each.item, each.categories) for each in folder.samples()} == {("a", ("hate",)), ("b", ("hate",))}


def real_plan() -> Plan:
    found = identify("playground")
    whole = plan(
        *methods_named(["max"]), model="playground", weights=found.weights, versions=library_versions()
    )
    require_same_place(whole, weights=True)
    return whole


def test_a_worker_with_another_version_of_a_library_refuses() -> None:
    whole = real_plan()
    other = replace(whole.settings, versions={**whole.settings.versions, "torch": "1.0"})
    with pytest.raises(ConfigurationError, match=r"started with 1\.0"):
        require_same_place(replace(whole, settings=other))


def test_a_worker_with_other_plugins_refuses() -> None:
    whole = real_plan()
    method = replace(whole.methods[0], resolved={"providers": {"filter x": "sld-x 1.0"}})
    with pytest.raises(ConfigurationError, match="other plugins for policy 'max'"):
        require_same_place(replace(whole, methods=(method,)))


def test_a_worker_with_other_weights_refuses() -> None:
    whole = real_plan()
    with pytest.raises(ConfigurationError, match="other weights"):
        require_same_place(replace(whole, settings=replace(whole.settings, weights="0")), weights=True)
