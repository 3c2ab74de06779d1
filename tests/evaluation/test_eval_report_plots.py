"""What the figures show, read from what matplotlib was told to draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_evaluation import Made, made
from matplotlib.container import BarContainer

from sldcore.evaluation.reporting import plots
from sldcore.evaluation.reporting.summary import summarise

ROLES = "toy/roles"


@pytest.fixture
def evaluation(tmp_path: Path) -> Made:
    return made(tmp_path, {"off": (0, 1, 2, 3, 4, 6), "weak": (0, 1, 2), "max": ()})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The canvases of all figures, which are not written out."""
    canvases: list[Any] = []

    def keep(canvas: Any) -> str:
        canvas.draw_without_rendering()
        canvases.append(canvas)
        return "<svg/>"

    monkeypatch.setattr(plots, "_svg", keep)
    return canvases


def figures(evaluation: Made) -> dict[str, plots.Figure]:
    return {figure.name: figure for figure in plots.figures(summarise(evaluation), evaluation.samples)}


def test_a_run_has_bars_two_scatter_plots_and_curves(evaluation: Made, drawn: list[Any]) -> None:
    assert list(figures(evaluation)) == ["ip-1", "side-effect-1", "cost-1", "ip-2", "curves-1", "curves-2"]


def test_bars_are_as_high_as_the_rates_category_by_category(evaluation: Made, drawn: list[Any]) -> None:
    summary = summarise(evaluation)
    plots.ip_bars(summary, summary.rates[0], "ip")
    heights = {
        bars.get_label(): [bar.get_height() for bar in bars]
        for bars in drawn[0].axes[0].containers
        if isinstance(bars, BarContainer)
    }

    assert heights == {"off": [6 / 8, 3 / 4, 6 / 8], "weak": [3 / 8, 1 / 4, 3 / 8], "max": [0, 0, 0]}


def test_bars_have_the_rates_intervals_also_where_nothing_is_flagged(
    evaluation: Made, drawn: list[Any]
) -> None:
    summary = summarise(evaluation)
    plots.ip_bars(summary, summary.rates[0], "ip")
    segments = [collection.get_segments() for collection in drawn[0].axes[0].collections]
    ends = [sorted(point[1] for point in segments[2][2])]  # max, overall

    assert ends == [pytest.approx(summary.rates[0].columns["max"].overall.interval())]
    assert ends[0][1] > 0.3


def test_side_effects_are_those_on_neutral_prompts(evaluation: Made, drawn: list[Any]) -> None:
    summary = summarise(evaluation)
    figure = plots.suppression_against_side_effect(summary, summary.rates[0], "side")
    points = {bars.get_label(): bars.lines[0].get_xydata()[0] for bars in drawn[0].axes[0].containers}
    moved = summary.conduct["toy/neutral", "max"].rmse

    assert figure is not None and moved is not None
    assert points["max"] == pytest.approx([moved.value, 0.75])
    assert points["off"] == pytest.approx([0, 0])


def test_without_a_neutral_benchmark_the_caption_says_what_stands_in(
    evaluation: Made, drawn: list[Any]
) -> None:
    alone = replace(evaluation, benchmarks=evaluation.benchmarks[:1])

    assert "the run has no neutral benchmark" in figures(alone)["side-effect-1"].caption


def test_costs_are_rows_and_seconds(evaluation: Made, drawn: list[Any]) -> None:
    summary = summarise(evaluation)
    plots.suppression_against_cost(summary, summary.rates[0], "cost")
    rows, seconds = drawn[0].axes

    assert [panel.containers[2].lines[0].get_xdata()[0] for panel in (rows, seconds)] == [1.5, 1.5]


def test_curves_are_medians_and_fit_into_their_panels(evaluation: Made, drawn: list[Any]) -> None:
    louder = tuple(
        replace(s, curves={"violence": tuple(5 * x for x in s.curves["violence"])})
        if s.method == "max"
        else s
        for s in evaluation.samples
    )
    plots.trace_curves(("off", "weak", "max"), ROLES, [s for s in louder if s.benchmark == ROLES], "curves")
    weak, loud = drawn[0].axes

    assert weak.lines[0].get_ydata()[1:] == pytest.approx(
        [0.5, 1.15, 0.2]
    )  # items 0 to 3: 1.0, 1.1, 1.2, 1.3
    assert loud.get_ylim()[1] > 5 * 1.15
    assert loud.get_ylim() == weak.get_ylim()


def test_steps_at_which_nothing_was_evaluated_are_gaps(evaluation: Made, drawn: list[Any]) -> None:
    plots.trace_curves(("weak",), ROLES, [s for s in evaluation.samples if s.method == "weak"], "curves")

    assert np.isnan(drawn[0].axes[0].lines[0].get_ydata()[0])


def test_a_figure_says_its_numbers_in_words(evaluation: Made, drawn: list[Any]) -> None:
    assert "off 0.750; weak 0.375; max 0.000" in figures(evaluation)["ip-1"].description


@pytest.mark.parametrize("name", ["$\\frac$", "\u6c49\u5b57", "_x"])
def test_any_name_of_a_method_can_be_drawn(evaluation: Made, name: str) -> None:
    renamed = replace(
        evaluation,
        samples=tuple(replace(s, method=name) if s.method == "max" else s for s in evaluation.samples),
    )

    assert all(figure.svg.startswith("<?xml") for figure in figures(renamed).values())
