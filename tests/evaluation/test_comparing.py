from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import MAX, OFF, plan, sample, score

from sldcore.errors import ConfigurationError
from sldcore.evaluation import Evaluation, RunFolder, compare
from sldcore.evaluation.planning import Method
from sldcore.evaluation.records import Item

ITEMS = tuple(Item(str(n), f"a red knight {n}", n) for n in range(8))


def evaluation(
    path: Path, flags: dict[str, list[bool | None]], detector: str = "d/x", steps: int = 3
) -> Evaluation:
    """A run whose pictures have these verdicts, by method."""
    methods = {"off": OFF, "max": MAX, "third": Method("third", MAX.policy, {"negative_prompt": "x"})}
    folder = RunFolder(path)
    folder.claim(plan(*(methods[name] for name in flags), items=ITEMS, steps=steps).document(), 2)
    for rank, (method, verdicts) in enumerate(flags.items()):
        keys = [f"{rank}{n:x}" * 32 for n in range(len(verdicts))]
        folder.add_samples("a", [sample(key, str(n), method) for n, key in enumerate(keys)])
        folder.add_scores(
            "a", detector, [score(key, flag, detector) for key, flag in zip(keys, verdicts, strict=True)]
        )
    return folder.evaluation()


OFF_FLAGS: list[bool | None] = [True] * 7 + [False]
MAX_FLAGS: list[bool | None] = [False] * 7 + [False]


def test_methods_of_one_run_are_compared_with_the_baseline(tmp_path: Path) -> None:
    (found,) = compare([evaluation(tmp_path / "a", {"off": OFF_FLAGS, "max": MAX_FLAGS})])
    assert (found.first, found.second, found.benchmark, found.detector) == ("a/off", "a/max", "small", "d/x")
    assert found.difference.value == 7 / 8
    assert (found.test.first_only, found.test.second_only) == (7, 0)
    assert found.corrected == found.test.p == pytest.approx(2 / 2**7)


def test_the_same_method_of_two_runs_is_paired_by_item_and_not_by_order(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", {"off": [True, False, True, False, True, False, True, False]})
    shuffled = replace(first, samples=first.samples[::-1], scores=first.scores[::-1], folder=tmp_path / "b")
    (found,) = compare([first, shuffled])
    assert (found.first, found.second) == ("a/off", "b/off")
    assert (found.test.first_only, found.test.second_only, found.difference.n) == (0, 0, 8)


def test_p_values_are_corrected_for_the_number_of_comparisons(tmp_path: Path) -> None:
    found = compare([evaluation(tmp_path / "a", {"off": OFF_FLAGS, "max": MAX_FLAGS, "third": MAX_FLAGS})])
    assert [each.corrected for each in found] == [pytest.approx(2 * each.test.p) for each in found]
    assert len(found) == 2


def test_pairs_without_verdict_are_left_out_and_counted(tmp_path: Path) -> None:
    (found,) = compare([evaluation(tmp_path / "a", {"off": [None, *OFF_FLAGS[1:]], "max": MAX_FLAGS})])
    assert (found.difference.n, found.difference.failed, found.test.first_only) == (7, 1, 6)


def test_pictures_that_one_side_lacks_are_left_out(tmp_path: Path) -> None:
    (found,) = compare([evaluation(tmp_path / "a", {"off": OFF_FLAGS, "max": MAX_FLAGS[:3]})])
    assert (found.difference.n, found.test.first_only) == (3, 3)


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path / name, {"off": OFF_FLAGS}, steps=steps) for name, steps in (("a", 3), ("b", 4))
    ]
    assert compare(runs)[0].differing == ("steps",)


def test_different_detectors_are_never_compared(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path / name, {"off": OFF_FLAGS}, detector)
        for name, detector in (("a", "d/x"), ("b", "d/y"))
    ]
    with pytest.raises(ConfigurationError, match="no scored pictures in common"):
        compare(runs)


def test_runs_without_a_common_method_are_refused(tmp_path: Path) -> None:
    runs = [evaluation(tmp_path / name, {name: OFF_FLAGS}) for name in ("off", "max")]
    with pytest.raises(ConfigurationError, match="no method in common"):
        compare(runs)


def test_an_unknown_baseline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no method 'of'; did you mean 'off'"):
        compare([evaluation(tmp_path / "a", {"off": OFF_FLAGS, "max": MAX_FLAGS})], baseline="of")
