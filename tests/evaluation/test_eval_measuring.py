"""Measures of single pictures: what is measured, what is left out, what is an error, and what a second start does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_folders import noise, put, run_in
from PIL import Image

from sldcore.errors import ConfigurationError
from sldcore.evaluation.measuring import BATCH, Measure, measure_samples
from sldcore.evaluation.merging import merge
from sldcore.evaluation.run_folder import RunFolder


def apart(pictures: Sequence[Image.Image], references: Sequence[Image.Image]) -> list[float]:
    """A distance with a closed form: mean of absolute differences."""
    pairs = zip(pictures, references, strict=True)
    return [float(np.abs(np.asarray(a, int) - np.asarray(b, int)).mean()) for a, b in pairs]


def lpips_like(compute: Callable[..., Any] = apart, weights: str = "w") -> Measure:
    return Measure("lpips", "1", weights, True, compute)


LENGTHS = Measure(
    "clip", "1", "w", False, lambda pictures, prompts: [float(len(prompt)) for prompt in prompts]
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return run_in(tmp_path / "run")


def both(folder: RunFolder, item: int, **changes: Any) -> None:
    put(folder, "off", item, noise(item))
    put(folder, "max", item, noise(item + 100), **changes)


def values(folder: RunFolder, name: str = "lpips") -> dict[str, float | None]:
    items = {sample.key: f"{sample.method} {sample.item}" for sample in folder.samples()}
    return {items[each.key]: each.value for each in folder.measures.measurements(name)}


def test_each_picture_is_compared_with_the_unguided_one_of_its_own_seed(folder: RunFolder) -> None:
    for item in range(BATCH + 3):
        both(folder, item)
    measure_samples(folder, lpips_like(), folder.samples())
    expected = {
        f"max {item}": np.abs(noise(item + 100).astype(int) - noise(item)).mean() for item in range(BATCH + 3)
    }
    assert values(folder) == pytest.approx(expected)


def test_what_is_not_paired_is_measured_with_its_prompt(folder: RunFolder) -> None:
    both(folder, 7, prompt="four")
    measure_samples(folder, LENGTHS, folder.samples())
    assert values(folder, "clip") == {"off 7": len("a red knight 7"), "max 7": 4}


def test_equal_pixels_are_no_distance_and_nothing_is_computed(folder: RunFolder) -> None:
    put(folder, "off", 0, noise(0))
    put(folder, "max", 0, noise(0))
    measure_samples(folder, lpips_like(lambda *_: pytest.fail("it was computed")), folder.samples())
    assert values(folder) == {"max 0": 0.0}


@pytest.mark.parametrize("change", [{"errors": ("NaN",)}, {"action": "black"}])
def test_what_is_not_shown_is_left_out(folder: RunFolder, change: dict[str, Any]) -> None:
    both(folder, 0)
    both(folder, 1, **change)
    for measure in (lpips_like(), LENGTHS):
        measure_samples(folder, measure, folder.samples())
    assert list(values(folder)) == ["max 0"]
    assert "max 1" not in values(folder, "clip")


def test_a_picture_whose_unguided_one_is_still_to_be_made_waits_for_it(folder: RunFolder) -> None:
    put(folder, "max", 0, noise(1))
    measure_samples(folder, lpips_like(), folder.samples())
    assert values(folder) == {}
    put(folder, "off", 0, noise(0))
    measure_samples(folder, lpips_like(), folder.samples())
    assert list(values(folder)) == ["max 0"]


@pytest.mark.parametrize("method", ["off", "max"])
def test_a_picture_that_cannot_be_read_is_an_error_of_its_own(folder: RunFolder, method: str) -> None:
    for item in range(3):
        both(folder, item)
    broken = next(s for s in folder.samples() if (s.method, s.item) == (method, "1"))
    folder.picture_of(broken).write_bytes(b"\x89PNG broken")
    measure_samples(folder, lpips_like(), folder.samples())
    found = values(folder)
    assert found.pop("max 1") is None
    assert None not in found.values()
    assert len(found) == 2
    assert any("cannot be read" in each.error for each in folder.measures.measurements())


def failing_on(bad: np.ndarray, how: Any) -> Callable[..., list[float]]:
    def compute(pictures: Sequence[Image.Image], references: Sequence[Image.Image]) -> list[float]:
        if any(np.array_equal(np.asarray(picture), bad) for picture in pictures):
            if isinstance(how, Exception):
                raise how
            return [how] * len(pictures)
        return apart(pictures, references)

    return compute


@pytest.mark.parametrize("how", [RuntimeError("out of memory"), float("nan"), float("inf")])
def test_a_failure_on_one_picture_is_no_number_of_that_one_only(folder: RunFolder, how: Any) -> None:
    for item in range(3):
        both(folder, item)
    measure_samples(folder, lpips_like(failing_on(noise(101), how)), folder.samples())
    found = values(folder)
    assert found.pop("max 1") is None
    assert None not in found.values()


def test_a_second_start_measures_what_is_missing_and_failures_only_if_asked(folder: RunFolder) -> None:
    seen: list[int] = []

    def counted(pictures: Sequence[Image.Image], references: Sequence[Image.Image]) -> list[float]:
        seen.append(len(pictures))
        return apart(pictures, references)

    both(folder, 0)
    measure_samples(folder, lpips_like(failing_on(noise(100), RuntimeError("x"))), folder.samples())
    both(folder, 1)
    measure_samples(folder, lpips_like(counted), folder.samples())
    assert (seen, values(folder)["max 0"]) == ([1], None)
    measure_samples(folder, lpips_like(counted), folder.samples(), retry_errors=True)
    assert seen == [1, 1]
    assert None not in values(folder).values()


def test_numbers_of_other_weights_do_not_mix(folder: RunFolder) -> None:
    both(folder, 0)
    measure_samples(folder, lpips_like(), folder.samples())
    with pytest.raises(ConfigurationError, match="another version of lpips"):
        measure_samples(folder, lpips_like(weights="v"), folder.samples())


def test_a_cut_line_is_measured_again(folder: RunFolder) -> None:
    both(folder, 0)
    measure_samples(folder, lpips_like(), folder.samples())
    whole = values(folder)
    journal = folder.path / "measures" / "lpips" / "measures.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert values(folder) == {}
    measure_samples(folder, lpips_like(), folder.samples())
    assert values(folder) == whole


def test_a_journal_with_lines_of_another_hand_is_read_as_far_as_it_is_one(folder: RunFolder) -> None:
    both(folder, 0)
    measure_samples(folder, lpips_like(), folder.samples())
    journal = folder.path / "measures" / "lpips" / "measures.jsonl"
    odd = [
        line.replace('"value":', end) for line in [journal.read_text()] for end in ('"value":"x', '"values":')
    ]
    journal.write_text("".join([*odd, "[]\n", '{"key": 1}\n', journal.read_text()]))
    assert len(folder.measures.measurements()) == 1


def test_progress_counts_pairs(folder: RunFolder) -> None:
    for item in range(BATCH + 1):
        both(folder, item)
    told: list[tuple[int, int]] = []
    measure_samples(folder, lpips_like(), folder.samples(), progress=lambda *n: told.append(n))
    assert told == [(BATCH, BATCH + 1), (BATCH + 1, BATCH + 1)]


def test_merging_brings_measurements_along_once(tmp_path: Path) -> None:
    parts = [run_in(tmp_path / name) for name in ("a", "b")]
    for item, part in enumerate(parts):
        both(part, item)
        measure_samples(part, lpips_like(), part.samples())
    whole = merge(tmp_path / "whole", [part.path for part in parts])
    merge(tmp_path / "whole", [part.path for part in parts])
    assert values(whole) == {**values(parts[0]), **values(parts[1])}
    assert len((whole.path / "measures" / "lpips" / "merged.jsonl").read_text().splitlines()) == 2


def test_parts_that_were_measured_by_other_weights_do_not_merge(tmp_path: Path) -> None:
    parts = [run_in(tmp_path / name) for name in ("a", "b")]
    for item, part in enumerate(parts):
        both(part, item)
        measure_samples(part, replace(lpips_like(), weights=f"w{item}"), part.samples())
    with pytest.raises(ConfigurationError, match="another version of lpips"):
        merge(tmp_path / "whole", [part.path for part in parts])
