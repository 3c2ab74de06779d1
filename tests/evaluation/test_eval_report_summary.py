"""The numbers of a report, against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from made_evaluation import Made, key_of, made

from sldcore.evaluation.reporting import conduct as conduct_module
from sldcore.evaluation.reporting.rates import Rates
from sldcore.evaluation.reporting.summary import summarise

ROLES, NEUTRAL = "toy/roles", "toy/neutral"


@pytest.fixture
def evaluation(tmp_path: Path) -> Made:
    """Four prompts with two pictures each; `off` flags 6 of 8 pictures, `weak` 3, `max` none."""
    return made(tmp_path, {"off": (0, 1, 2, 3, 4, 6), "weak": (0, 1, 2), "max": ()})


def roles(evaluation: Made) -> Rates:
    return next(rates for rates in summarise(evaluation).rates if rates.benchmark.name == ROLES)


def test_ip_is_the_share_of_flagged_pictures(evaluation: Made) -> None:
    columns = roles(evaluation).columns

    assert [columns[m].overall.value for m in ("off", "weak", "max")] == [6 / 8, 3 / 8, 0]
    assert columns["weak"].overall.clusters == 4


def test_a_picture_counts_in_each_of_its_categories(evaluation: Made) -> None:
    weak = roles(evaluation).columns["weak"]

    assert weak.categories["violence"].value == 3 / 8
    assert weak.categories["sexual"].value == 1 / 4  # items 1 and 3: pictures 2, 3, 6, 7


def test_a_detector_error_is_in_no_rate_and_is_counted(evaluation: Made) -> None:
    failed = evaluation.verdict(key_of(ROLES, 2, "max"), None, "out of memory")
    column = roles(failed).columns["max"]

    assert (column.overall.n, column.overall.failed) == (7, 1)
    assert any("glyphs failed on 1 pictures of max" in warning for warning in summarise(failed).warnings)


def test_a_sample_with_errors_is_in_no_rate_even_if_a_score_exists(evaluation: Made) -> None:
    broken = evaluation.but(key_of(ROLES, 0, "weak"), errors=("engine: NaN",))
    found = summarise(broken)

    assert roles(broken).columns["weak"].overall.n == 7
    assert found.conduct[ROLES, "weak"].errors == 1
    assert any("1 of 8 samples of weak have errors" in warning for warning in found.warnings)


def test_a_picture_that_is_not_scored_is_counted_apart(evaluation: Made) -> None:
    partly = replace(
        evaluation, scores=tuple(s for s in evaluation.scores if s.key != key_of(ROLES, 3, "max"))
    )
    column = roles(partly).columns["max"]

    assert (column.unscored, column.overall.n, column.overall.failed) == (1, 7, 0)


def test_other_weights_are_another_detector(evaluation: Made) -> None:
    scores = (
        replace(s, weights="d" * 64) if s.key == key_of(ROLES, 0, "off") else s for s in evaluation.scores
    )
    found = [
        r for r in summarise(replace(evaluation, scores=tuple(scores))).rates if r.benchmark.name == ROLES
    ]

    assert sorted(rates.columns["off"].overall.n for rates in found) == [1, 7]


def test_the_drop_is_paired_and_clustered_by_prompt(evaluation: Made) -> None:
    drop = roles(evaluation).columns["weak"].drop
    # Differences per prompt of two pictures: 0 0 | 0 1 | 1 0 | 1 0; means 0, .5, .5, .5.
    means = (0, 0.5, 0.5, 0.5)
    error = math.sqrt(sum((m - 0.375) ** 2 for m in means) / 3 / 4)

    assert drop is not None
    assert (drop.value, drop.n, drop.clusters) == (0.375, 8, 4)
    assert drop.error == pytest.approx(error)


def test_p_values_are_corrected_for_the_number_of_methods(tmp_path: Path) -> None:
    one = made(tmp_path, {"off": range(6), "max": ()}, items=6, images=1)
    two = made(tmp_path, {"off": range(6), "max": (), "also": ()}, items=6, images=1)

    assert roles(one).columns["max"].p == pytest.approx(2 / 2**6)  # exact McNemar
    assert roles(two).columns["max"].p == pytest.approx(2 * 2 / 2**6)  # Holm


def test_the_baseline_has_no_drop_and_no_p(evaluation: Made) -> None:
    off = roles(evaluation).columns["off"]

    assert (off.drop, off.p) == (None, None)


def test_without_off_the_first_method_is_the_baseline(tmp_path: Path) -> None:
    assert summarise(made(tmp_path, {"max": (), "weak": (0,)})).baseline == "max"


def test_identical_pictures_are_told_by_the_hash_of_their_pixels(evaluation: Made) -> None:
    conduct = summarise(evaluation).conduct

    assert conduct[NEUTRAL, "weak"].identical is not None
    assert conduct[NEUTRAL, "weak"].identical.value == 0.5  # the second picture of each prompt
    assert conduct[NEUTRAL, "max"].identical is not None
    assert conduct[NEUTRAL, "max"].identical.value == 0


def test_rmse_is_the_distance_to_the_baseline(evaluation: Made) -> None:
    found = summarise(evaluation).conduct[NEUTRAL, "max"].rmse
    changed = 64 * 64 - 32 * 32 - (64 * 64 // 8 - 32 * 32 // 8)  # neither the square nor the dark dots

    assert found is not None
    assert found.value == pytest.approx(40 / 255 * math.sqrt(changed / 64**2), rel=1e-6)


def test_blocked_pictures_are_counted_and_in_no_distance(evaluation: Made) -> None:
    conduct = summarise(evaluation.but(key_of(ROLES, 1, "max"), action="block")).conduct[ROLES, "max"]

    assert conduct.blocked.value == 1 / 8
    assert conduct.rmse is not None
    assert conduct.rmse.n == 7


def test_a_flagged_picture_that_is_shown_is_not_blocked(evaluation: Made) -> None:
    assert (
        summarise(evaluation.but(key_of(ROLES, 1, "max"), action="flag")).conduct[ROLES, "max"].blocked.value
        == 0
    )


@pytest.mark.parametrize("file", ["pictures/missing.png", "../outside.png", ""])
def test_pictures_that_cannot_be_read_are_counted_as_failed_distances(evaluation: Made, file: str) -> None:
    (evaluation.folder.parent / "outside.png").write_bytes(
        (evaluation.folder / evaluation.samples[0].file).read_bytes()
    )
    found = summarise(evaluation.but(key_of(ROLES, 1, "max"), file=file)).conduct[ROLES, "max"].rmse

    assert found is not None
    assert (found.n, found.failed) == (7, 1)


def test_large_runs_measure_distances_on_some_pairs(
    evaluation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct_module, "MOST_PAIRS", 3)
    found = summarise(evaluation).conduct[ROLES, "max"].rmse

    assert found is not None
    assert found.n == 3


def test_costs_are_ratios_of_sums(evaluation: Made) -> None:
    conduct = summarise(evaluation.but(key_of(ROLES, 0, "max"), rows=120, seconds=5.5)).conduct[ROLES, "max"]

    assert conduct.rows is not None
    assert conduct.rows.value == (7 * 60 + 120) / (8 * 40)
    assert conduct.seconds is not None
    assert conduct.seconds.value == (7 * 1.5 + 5.5) / 8


def test_an_unfinished_method_is_reported(evaluation: Made) -> None:
    cut = replace(
        evaluation, samples=tuple(s for s in evaluation.samples if s.key != key_of(ROLES, 3, "weak", 1))
    )

    assert f"{ROLES}: weak has 7 of 8 pictures; the run is incomplete." in summarise(cut).warnings


def test_a_run_that_all_methods_left_unfinished_is_reported(evaluation: Made) -> None:
    cut = replace(evaluation, samples=tuple(s for s in evaluation.samples if s.item != "3"))

    assert f"{ROLES}: off has 6 of 8 pictures; the run is incomplete." in summarise(cut).warnings


def test_a_finished_run_without_errors_has_no_warnings(evaluation: Made) -> None:
    assert summarise(evaluation).warnings == ()


def test_an_empty_run_says_so(evaluation: Made) -> None:
    assert summarise(replace(evaluation, samples=(), scores=())).warnings == ("The run has no samples yet.",)
