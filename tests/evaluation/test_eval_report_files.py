"""What a report writes: tables in several forms, the CSV of samples, and a page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_evaluation import Made, key_of, made
from PIL import Image
from rich.console import Console

from sldcore.errors import ConfigurationError
from sldcore.evaluation.records import Score
from sldcore.evaluation.reporting import Report, report
from sldcore.evaluation.reporting.rendering import Table, to_html, to_latex, to_markdown

ROLES = "toy/roles"


@pytest.fixture
def evaluation(tmp_path: Path) -> Made:
    return made(tmp_path / "run", {"off": (0, 1, 2, 3, 4, 6), "weak": (0, 1, 2), "max": ()})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of that evaluation, beside the model card."""
    folder = tmp_path_factory.mktemp("reported")
    run = made(folder / "run", {"off": (0, 1, 2, 3, 4, 6), "weak": (0, 1, 2), "max": ()})
    return report(run, folder / "out", against="published")


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_a_report_is_four_files_and_nothing_else(written: Report) -> None:
    assert sorted(path.name for path in written.html.parent.iterdir()) == [
        "report.html",
        "report.md",
        "report.tex",
        "samples.csv",
    ]


def test_the_same_run_gives_the_same_bytes(evaluation: Made, tmp_path: Path) -> None:
    first, second = (report(evaluation, tmp_path / name) for name in ("a", "b"))

    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.markdown.read_bytes() == second.markdown.read_bytes()


def test_a_report_that_cannot_be_written_is_an_error_with_the_folder(
    evaluation: Made, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigurationError, match=r"cannot write the report to .*file"):
        report(evaluation, tmp_path / "file")


def test_markdown_has_categories_by_methods(written: Report) -> None:
    text = written.markdown.read_text(encoding="utf-8")

    assert "| category | off | weak | max |" in text
    assert re.search(
        r"^\| sexual \| 0\.750 ± 0\.\d{3} \| 0\.250 ± 0\.\d{3} \| 0\.000 ± 0\.000 \|$", text, re.MULTILINE
    )


@pytest.mark.parametrize("part", ["0123456789abcdef", "version 7", "aaaaaaaaaaaa"])
def test_every_rate_table_names_data_and_detector(written: Report, part: str) -> None:
    for path in (written.markdown, written.latex, written.html):
        assert part in path.read_text(encoding="utf-8")


def test_detector_errors_are_shown_even_if_there_are_none(written: Report) -> None:
    text = written.markdown.read_text(encoding="utf-8")

    assert "| detector errors | 0 | 0 | 0 |" in text


def test_a_rate_of_zero_has_an_interval_that_is_not(written: Report) -> None:
    text = written.markdown.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| 95 % interval"))

    assert row.split("|")[4].strip() == "0.000 to 0.490"  # Wilson's for none of four prompts: z^2 / (4 + z^2)


def test_warnings_stand_in_every_form(evaluation: Made, tmp_path: Path) -> None:
    failed = evaluation.verdict(key_of(ROLES, 0, "max"), None, "x")
    written = report(failed, tmp_path / "out")
    stream = io.StringIO()
    written.show(Console(file=stream, width=200))

    for text in (
        *(p.read_text(encoding="utf-8") for p in (written.markdown, written.latex, written.html)),
        stream.getvalue(),
    ):
        assert "failed on 1 pictures of max" in text


def test_the_csv_has_a_line_per_sample_with_the_verdict(evaluation: Made, tmp_path: Path) -> None:
    failed = evaluation.verdict(key_of(ROLES, 0, "max"), None, "out of memory")
    rows = rows_of(report(failed, tmp_path / "out").csv)
    by_key = {row["key"]: row for row in rows}

    assert len(rows) == len(evaluation.samples)
    assert by_key[key_of(ROLES, 0, "off")]["glyphs:flagged"] == "1"
    assert by_key[key_of(ROLES, 1, "max")]["glyphs:flagged"] == "0"
    assert by_key[key_of(ROLES, 0, "max")]["glyphs:flagged"] == "error"
    assert by_key[key_of(ROLES, 0, "max")]["glyphs:error"] == "out of memory"


def test_the_csv_keeps_prompts_as_they_are(evaluation: Made, tmp_path: Path) -> None:
    prompt = 'a "red"\ncat, =1+1; ünï'
    rows = rows_of(report(evaluation.but(key_of(ROLES, 0, "off"), prompt=prompt), tmp_path / "out").csv)

    assert prompt in [row["prompt"] for row in rows]


def test_latex_escapes_what_it_would_obey() -> None:
    text = to_latex(Table("50 % of $x_1$", ("a&b", r"\input{x}"), (("~^", "1 ± 2"),), "#"))

    assert r"50 \% of \$x\_1\$" in text
    assert r"a\&b & \textbackslash{}input\{x\} \\" in text
    assert r"\textasciitilde{}\textasciicircum{} & 1 $\pm$ 2 \\" in text


def test_markdown_cells_cannot_break_out_of_the_table() -> None:
    row = to_markdown(Table("t", ("a", "b"), (("x|y", "<b>\n![](z)"),))).splitlines()[4]

    assert row == r"| x\|y | \<b\> !\[\](z) |"


def test_html_cells_are_text() -> None:
    assert "<td>&lt;b&gt;&amp;</td>" in to_html(Table("t", ("a", "b"), (("x", "<b>&"),)))


def test_terminal_sequences_in_names_are_taken_out() -> None:
    assert Table("t\x1b[2J", ("a",), (("\u202eevil",),)).title == "t\ufffd[2J"


def test_the_page_shows_pictures_of_a_few_pixels_and_holds_the_whole_ones_apart(written: Report) -> None:
    text = written.html.read_text(encoding="utf-8")
    tiles = re.findall(
        r'<img src="data:image/png;base64,([^"]+)" data-clear="data:image/png;base64,([^"]+)"', text
    )

    assert len(tiles) == 2 * 3 * 4
    assert {Image.open(io.BytesIO(base64.b64decode(shown))).size for shown, _ in tiles} == {(4, 4)}
    assert {Image.open(io.BytesIO(base64.b64decode(whole))).size for _, whole in tiles} == {(64, 64)}


def test_flagged_pictures_are_marked_by_a_word_too(written: Report) -> None:
    text = written.html.read_text(encoding="utf-8")

    assert (
        text.count('<span class="mark">flagged</span>') == 4 + 2
    )  # first pictures: 0, 2, 4, 6 of off, 0 and 2 of weak


def test_a_broken_picture_is_said_in_its_place(evaluation: Made, tmp_path: Path) -> None:
    (evaluation.folder / evaluation.samples[0].file).write_bytes(b"\x89PNG broken")
    text = report(evaluation, tmp_path / "out").html.read_text(encoding="utf-8")

    assert text.count("picture cannot be read") == 1


def test_the_page_has_the_whole_description(written: Report) -> None:
    text = written.html.read_text(encoding="utf-8")

    assert "b" * 64 in text


def test_a_page_without_scores_and_curves_has_pictures_and_says_why_there_are_no_rates(
    evaluation: Made, tmp_path: Path
) -> None:
    bare = replace(evaluation, scores=(), samples=tuple(replace(s, curves={}) for s in evaluation.samples))
    text = report(bare, tmp_path / "out").html.read_text(encoding="utf-8")

    assert "No detector has scored this run" in text
    assert 'class="tile"' in text


def test_an_empty_run_can_be_reported(evaluation: Made, tmp_path: Path) -> None:
    written = report(
        replace(evaluation, samples=(), scores=(), description={}), tmp_path / "out", against="published"
    )

    assert "The run has no samples yet." in written.markdown.read_text(encoding="utf-8")


def test_published_figures_stand_beside_the_runs_with_what_differs(written: Report) -> None:
    text = written.markdown.read_text(encoding="utf-8")
    row = next(
        line for line in text.splitlines() if line.startswith("| sexual | 0.750") and line.count("|") == 8
    )
    cells = [cell.strip() for cell in row.split("|")[2:-1]]

    assert cells[1::2] == ["0.35", "0.23", "0.06"]
    assert [cell[:5] for cell in cells[::2]] == ["0.750", "0.250", "0.000"]
    assert "benchmark: i2p published, toy/roles here" in text
    assert "detector: q16-or-nudenet published, glyphs here" in text


def test_published_maxima_stand_beside_the_runs_maxima_in_percent(tmp_path: Path) -> None:
    run = made(tmp_path / "run", {"off": range(30), "max": ()}, items=30, images=1)
    written = report(run, tmp_path / "out", against="i2p-readme-maximum")
    overall = next(row for row in written.beside[0].rows if row[0] == "overall")

    assert overall[1:3] == ("100.0 ± 0.0", "97.1 ± 6.2")


def test_neutral_benchmarks_are_not_put_beside_published_figures(written: Report) -> None:
    assert len(written.beside) == 1


def test_an_unknown_published_table_is_named_with_those_there_are(evaluation: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no published table 'modelcard'; did you mean 'model-card'"):
        report(evaluation, tmp_path / "out", against="modelcard")


def test_two_detectors_have_a_table_and_columns_each(evaluation: Made, tmp_path: Path) -> None:
    other = tuple(Score(s.key, "q16", True, {"inappropriate": 0.9}, "1", "") for s in evaluation.scores)
    written = report(replace(evaluation, scores=evaluation.scores + other), tmp_path / "out")

    assert "by q16 (version 1, no weights)" in written.markdown.read_text(encoding="utf-8")
    assert {row["q16:flagged"] for row in rows_of(written.csv)} == {"1"}
