from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import KEY, MAX, OFF, plan, sample, score

from sldcore.errors import ConfigurationError
from sldcore.evaluation.merging import merge
from sldcore.evaluation.planning import Method
from sldcore.evaluation.run_folder import RunFolder
from sldcore.policy import SafetyPolicy

OTHER = "cd" * 32


def claimed(path: Path, *methods: Method, **changes: Any) -> RunFolder:
    folder = RunFolder(path)
    folder.claim(plan(*methods, **changes).document(), 2)
    return folder


def test_samples_and_scores_come_back_as_they_were(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    folder.add_samples("a", [sample()])
    folder.add_samples("b", [sample(OTHER, "1", errors=("broken",), file="")])
    folder.add_scores("a", "d/x", [score(), score(OTHER, None, error="no")])
    found = folder.evaluation()
    assert found.samples == (sample(), sample(OTHER, "1", errors=("broken",), file=""))
    assert found.scores == (score(), score(OTHER, None, error="no"))


def test_a_second_start_of_the_same_run_changes_nothing(tmp_path: Path) -> None:
    claimed(tmp_path)
    before = (tmp_path / "run.yaml").stat().st_mtime_ns
    claimed(tmp_path)
    assert (tmp_path / "run.yaml").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 4}, "steps is 3 there, 4 here"),
        ({"dtype": "float16"}, "dtype"),
        ({"versions": {"torch": "9"}}, "versions.torch is '2' there, '9' here"),
        ({"images": 2}, "images"),
    ],
)
def test_another_setting_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    claimed(tmp_path)
    with pytest.raises(ConfigurationError, match=words):
        claimed(tmp_path, **change)


def test_another_policy_of_the_same_name_is_refused(tmp_path: Path) -> None:
    claimed(tmp_path, OFF, MAX)
    with pytest.raises(ConfigurationError, match="digest of max"):
        claimed(tmp_path, OFF, Method("max", SafetyPolicy.preset("strong")))


def test_methods_can_be_added_and_those_there_stay(tmp_path: Path) -> None:
    claimed(tmp_path, OFF)
    claimed(tmp_path, MAX)
    assert [method["name"] for method in RunFolder(tmp_path).describe()["methods"]] == ["off", "max"]


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(ConfigurationError, match="not empty and holds no run"):
        claimed(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_what_a_killed_first_start_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".run.yaml.01ab23cd").write_text("form")
    claimed(tmp_path)
    assert RunFolder(tmp_path).describe()["format"] == 1


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigurationError, match="is a file"):
        claimed(tmp_path / "run")


@pytest.mark.parametrize("text", ["format: 9", "format: 1", "- 1", "format: 1\nsettings: 3\nmethods: [1]"])
def test_a_damaged_description_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigurationError):
        RunFolder(tmp_path).evaluation()


def test_a_folder_without_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no run"):
        RunFolder(tmp_path / "nothing").evaluation()


HOSTILE: dict[str, dict[str, Any]] = {
    "a picture elsewhere": {"file": "../../etc/passwd"},
    "an absolute picture": {"file": "/etc/passwd"},
    "a picture that goes up": {"file": f"pictures/../{KEY}.png"},
    "a key that is none": {"key": "../x"},
    "a number for a prompt": {"prompt": 3},
    "a text for a number": {"rows": "many"},
    "an unknown field": {"evil": 1},
    "curves that are none": {"curves": [1]},
    "endless seconds": {"seconds": 1e999},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_line_is_passed_over_that_has(tmp_path: Path, case: str) -> None:
    folder = claimed(tmp_path)
    folder.add_samples("a", [sample()])
    journal = tmp_path / "samples" / "a.jsonl"
    document = {**json.loads(journal.read_text()), "item": "1", **HOSTILE[case]}
    with journal.open("a") as file:
        file.write(json.dumps(document) + "\n")
    assert folder.samples() == [sample()]


def test_of_a_sample_made_twice_the_later_counts(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    folder.add_samples("a", [sample(errors=("x",), file="")])
    folder.add_samples("a", [sample()])
    assert folder.samples() == [sample()]


def test_the_order_is_that_of_methods_and_items_whoever_made_them(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    for number, (item, method) in enumerate(
        [("10", "max"), ("b", "off"), ("2", "max"), ("10", "off"), ("2", "off")]
    ):
        folder.add_samples(f"w{9 - number}", [sample(f"{number}" * 64, item, method)])
    order = [(each.method, each.item) for each in folder.evaluation().samples]
    assert order == [("off", "2"), ("off", "10"), ("off", "b"), ("max", "2"), ("max", "10")]


def test_missing_counts_what_is_still_to_be_made(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    folder.add_samples("a", [sample()])
    assert (folder.evaluation().expected, folder.evaluation().missing) == (10, 9)


def test_scores_of_another_version_do_not_mix(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    folder.claim_scores("d/x", {"version": "1", "weights": "w"})
    folder.claim_scores("d/x", {"version": "1", "weights": "w"})
    with pytest.raises(ConfigurationError, match="another version of d/x"):
        folder.claim_scores("d/x", {"version": "2", "weights": "w"})


def part(path: Path, key: str, item: str) -> Path:
    folder = claimed(path)
    one = sample(key, item)
    folder.picture_of(one).parent.mkdir(parents=True)
    folder.picture_of(one).write_bytes(key.encode())
    folder.add_samples("a", [one])
    folder.claim_scores("d/x", {"version": "1", "weights": "w"})
    folder.add_scores("a", "d/x", [score(key)])
    return path


def test_merging_joins_samples_scores_and_pictures_and_can_be_repeated(tmp_path: Path) -> None:
    parts = [part(tmp_path / "1", KEY, "0"), part(tmp_path / "2", OTHER, "1")]
    for _ in range(2):
        whole = merge(tmp_path / "whole", parts)
    found = whole.evaluation()
    assert [each.item for each in found.samples] == ["0", "1"]
    assert [each.key for each in found.scores] == [KEY, OTHER]
    assert [whole.picture_of(each).read_bytes().decode() for each in found.samples] == [KEY, OTHER]
    assert len((tmp_path / "whole" / "samples" / "merged.jsonl").read_text().splitlines()) == 2


def test_merging_refuses_parts_of_different_runs(tmp_path: Path) -> None:
    claimed(tmp_path / "1")
    claimed(tmp_path / "2", steps=4)
    with pytest.raises(ConfigurationError, match="steps is 3 there, 4 here"):
        merge(tmp_path / "whole", [tmp_path / "1", tmp_path / "2"])
