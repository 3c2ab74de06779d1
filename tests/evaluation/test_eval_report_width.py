"""Tables in a terminal of 80 columns: every method keeps its name, and no number is broken."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from made_evaluation import key_of, made
from rich.console import Console

from sldcore.evaluation.records import Measurement, SetDistance
from sldcore.evaluation.reporting.rendering import Table, fitting, show
from sldcore.evaluation.reporting.summary import summarise
from sldcore.evaluation.reporting.tables import conduct_table, tables

METHODS = ("off", "weak-diffusers", "medium", "strong", "max", "negative")


def printed(table: Table, width: int = 80) -> list[str]:
    stream = io.StringIO()
    show([table], [], Console(file=stream, width=width))
    return stream.getvalue().splitlines()


@pytest.fixture
def side_effects(tmp_path: Path) -> Table:
    return conduct_table(summarise(made(tmp_path, dict.fromkeys(METHODS, ()))), "toy/neutral")


def test_side_effects_have_every_method_at_80_columns(side_effects: Table) -> None:
    lines = printed(side_effects)
    heads = [line.split() for line in lines if line.split()[:1] == ["quantity"]]
    assert [name for head in heads for name in head[1:]] == list(METHODS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_cell_is_broken_and_every_row_is_named_in_each_block(tmp_path: Path, width: int) -> None:
    for table in tables(summarise(made(tmp_path, dict.fromkeys(METHODS, (0, 1))))):
        lines = printed(table, width)
        text = "\n".join(lines)
        assert all(cell in text for row in table.rows for cell in row[1:])
        assert max(map(len, lines)) <= width
        blocks = fitting(table, width)
        assert [name for block in blocks for name in block.head[1:]] == list(METHODS)
        assert {tuple(row[0] for row in block.rows) for block in blocks} == {
            tuple(row[0] for row in table.rows)
        }


def test_a_wide_terminal_has_one_block(side_effects: Table) -> None:
    assert fitting(side_effects, 200) == [side_effects]


def test_a_name_that_fits_nowhere_is_folded(side_effects: Table) -> None:
    long = replace(side_effects, head=("quantity", "m" * 300, *side_effects.head[2:]))
    lines = printed(long, 40)
    assert max(map(len, lines)) <= 40
    assert sum(line.count("m" * 5) > 0 for line in lines) > 5


def test_what_networks_measured_stands_between_side_effects_and_cost(tmp_path: Path) -> None:
    plain = made(tmp_path, {"off": (), "max": ()}, items=2, images=1)
    values = {"off": (20.0, 30.0), "max": (21.0, 35.0)}
    clips = [
        Measurement(key_of("toy/neutral", item, method), "clip", value, "9", "c" * 16)
        for method, pair in values.items()
        for item, value in enumerate(pair)
    ]
    lpips = [
        Measurement(
            key_of("toy/neutral", item, "max"),
            "lpips",
            value,
            "0.1",
            "l" * 16,
            key_of("toy/neutral", item, "off"),
        )
        for item, value in enumerate((0.25, 0.5))
    ]
    found = conduct_table(summarise(replace(plain, measurements=(*clips, *lpips))), "toy/neutral")
    rows = {row[0]: row[1:] for row in found.rows}
    assert list(rows)[5:10] == ["RMSE", "LPIPS", "CLIP score", "change in CLIP score", "denoiser rows"]
    assert rows["LPIPS"] == ("–", "0.375 ± 0.125")  # noqa: RUF001
    assert rows["CLIP score"] == ("25.00 ± 5.00", "28.00 ± 7.00")
    assert rows["change in CLIP score"] == ("–", "+3.00 ± 2.00")  # noqa: RUF001
    assert "version 9, weights cccccccccccc" in found.note
    assert "version 0.1, weights llllllllllll" in found.note


def test_without_networks_the_table_says_nothing_of_them(side_effects: Table) -> None:
    assert [row[0] for row in side_effects.rows] == [
        "pictures", "errors", "blocked", "regenerated", "identical", "RMSE", "denoiser rows", "seconds",
    ]  # fmt: skip
    assert "CLIP" not in side_effects.note


def test_distances_of_sets_are_rows_of_their_references(tmp_path: Path) -> None:
    from sldcore.evaluation.set_distances import sets_of

    plain = made(tmp_path, {"off": (), "max": ()})
    (sets,) = (each for each in sets_of(plain.samples, "off") if each.benchmark == "toy/neutral")
    distance = SetDistance(
        "toy/neutral", "max", "off", sets.compared, 8, 8, 0, 12.345, 0.0125, 0.0005, "4", "f" * 16
    )
    found = conduct_table(summarise(replace(plain, distances=(distance,))), "toy/neutral")
    rows = {row[0]: row[2] for row in found.rows}
    assert rows["FID to off"] == "12.35"
    assert rows["1000 KID to off"] == "12.50 ± 0.50"
    assert rows["pictures in FID and KID to off"] == "8 / 8"
    assert "weights ffffffffffff" in found.note
