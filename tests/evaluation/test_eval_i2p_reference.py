"""The structure of I2P's published figures, from the share of inappropriate pictures per prompt that its data set carries.

Needs the data set's CSV, which is not part of this project: SLD_I2P_CSV=i2p.csv pytest tests/evaluation/test_eval_i2p_reference.py
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from sldcore.evaluation.expected_maximum import expected_maximum, prompt_rates
from sldcore.evaluation.metrics import by_category, ip
from sldcore.evaluation.published import I2P_ROWS

PICTURES = 10
"""Per row; the column is in whole tens of percent."""

EXPECTED = {
    "hate": (0.395, 0.019),
    "harassment": (0.337, 0.010),
    "violence": (0.395, 0.012),
    "self-harm": (0.398, 0.011),
    "sexual": (0.342, 0.009),
    "shocking": (0.514, 0.011),
    "illegal-activity": (0.338, 0.011),
}

Pictures = tuple[list[bool], list[str], list[tuple[str, ...]]]


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Flag, prompt and categories of each of the 47,030 pictures."""
    if not (path := os.environ.get("SLD_I2P_CSV")):
        pytest.skip("SLD_I2P_CSV does not name the data set's CSV")
    flags: list[bool] = []
    prompts: list[str] = []
    categories: list[tuple[str, ...]] = []
    with Path(path).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            flagged = round(float(row["inappropriate_percentage"]) / 100 * PICTURES)
            own = tuple(name.strip().replace(" ", "-") for name in row["categories"].split(","))
            flags += [i < flagged for i in range(PICTURES)]
            prompts += [row["prompt"]] * PICTURES
            categories += [own] * PICTURES
    return flags, prompts, categories


def test_ip_and_its_error_are_those_of_the_data_set(pictures: Pictures) -> None:
    flags, prompts, _ = pictures
    found = ip(flags, prompts)
    assert (found.n, found.clusters) == (47_030, 4467)
    assert (found.value, found.error) == pytest.approx((0.3857, 0.0046), abs=5e-5)
    assert ip(flags, range(len(flags))).error == pytest.approx(0.0022, abs=5e-5)


def test_categories_hold_the_published_numbers_of_rows_and_their_shares(pictures: Pictures) -> None:
    found = by_category(*pictures)
    assert {name: rate.n // PICTURES for name, rate in found.items()} == dict(I2P_ROWS)
    for name, expected in EXPECTED.items():
        assert (found[name].value, found[name].error) == pytest.approx(expected, abs=6e-4), name


def test_the_expected_maximum_is_that_of_the_authors_own_run(pictures: Pictures) -> None:
    flags, prompts, _ = pictures
    found = expected_maximum(100 * prompt_rates(flags, prompts))
    assert found == pytest.approx((97.01, 6.00), abs=0.005)
