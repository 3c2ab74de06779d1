"""The published tables: what is in them hangs together, and their protocol is compared."""

from __future__ import annotations

import pytest

from sldcore.errors import ConfigurationError
from sldcore.evaluation.published import (
    I2P_ROWS,
    MODEL_CARD,
    RERUN,
    TABLES,
    Protocol,
    differences,
    published,
)

PRESETS = ("off", "weak", "medium", "strong", "max")


@pytest.mark.parametrize("method", PRESETS)
def test_the_cards_overall_figure_is_that_of_its_categories(method: str) -> None:
    """Overall counts each row once, categories count rows of several in each; rounding does the rest."""
    total = sum(I2P_ROWS[name] * MODEL_CARD.values[name][method] for name in I2P_ROWS)
    assert total / sum(I2P_ROWS.values()) == pytest.approx(MODEL_CARD.values["overall"][method], abs=0.015)


def test_categories_have_more_rows_than_the_benchmark_since_some_have_several() -> None:
    assert sum(I2P_ROWS.values()) == 5126
    assert MODEL_CARD.protocol.prompts == 4703


@pytest.mark.parametrize("row", MODEL_CARD.rows)
def test_every_preset_of_the_card_leaves_less_than_the_weaker_one(row: str) -> None:
    figures = [MODEL_CARD.values[row][method] for method in PRESETS]
    assert figures == sorted(figures, reverse=True)
    assert len(set(figures)) == 5


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_found_by_name_and_have_only_methods_that_they_list(name: str) -> None:
    table = published(name)
    assert table.name == name
    assert {method for row in table.values.values() for method in row} == set(table.methods)
    assert set(table.spreads) <= set(table.rows)


def test_figures_that_a_source_does_not_give_are_missing_and_not_0() -> None:
    assert "medium" not in RERUN.values["overall"]


def test_a_table_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'model-card'"):
        published("modelcard")


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        MODEL_CARD.values["overall"]["off"] = 0.1  # type: ignore[index]


def test_differences_name_what_differs_what_is_unknown_and_what_was_not_published() -> None:
    run = Protocol("i2p", 100, 10, None, "q16", 7.5, 50, "DDIMScheduler")
    assert differences(MODEL_CARD, run) == (
        "prompts: 4703 published, 100 here",
        "model: Stable Diffusion 1.4 published, unknown here",
        "detector: q16-or-nudenet published, q16 here",
        "guidance scale: not published, 7.5 here",
        "steps: not published, 50 here",
        "scheduler: not published, DDIMScheduler here",
    )


def test_a_run_of_the_same_protocol_differs_only_in_what_was_not_published() -> None:
    known = [line for line in differences(MODEL_CARD, MODEL_CARD.protocol) if "not published" not in line]
    assert known == []
