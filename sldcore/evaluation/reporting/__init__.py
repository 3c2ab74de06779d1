"""Reports of an evaluation: terminal, Markdown, LaTeX, CSV of samples, and one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sldcore.documents import write_text_atomically
from sldcore.errors import ConfigurationError
from sldcore.evaluation.reporting.against import beside
from sldcore.evaluation.reporting.evaluated import Evaluated
from sldcore.evaluation.reporting.page import page
from sldcore.evaluation.reporting.provenance import facts
from sldcore.evaluation.reporting.rendering import (
    Table,
    show,
    text_in_latex,
    text_in_markdown,
    to_latex,
    to_markdown,
)
from sldcore.evaluation.reporting.samples_csv import samples_csv
from sldcore.evaluation.reporting.summary import Summary, summarise
from sldcore.evaluation.reporting.tables import tables

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Evaluated", "Report", "Summary", "report", "summarise"]


@dataclass(frozen=True, slots=True)
class Report:
    """What ``report`` wrote, and the numbers in it. ``beside`` are the tables of published figures."""

    html: Path
    markdown: Path
    latex: Path
    csv: Path
    summary: Summary
    beside: tuple[Table, ...]

    def show(self, console: Console) -> None:
        """Print warnings and tables in a terminal."""
        show((*tables(self.summary), *self.beside), self.summary.warnings, console)


def report(evaluation: Evaluated, out: str | Path, against: str | None = None) -> Report:
    """Write ``report.html``, ``report.md``, ``report.tex`` and ``samples.csv`` into a folder; each appears by rename.

    Args:
        evaluation: The run, also an unfinished one: what is missing is said.
        out: The folder; made if it does not exist.
        against: ``published`` or the name of a published table, to be put beside the run.

    Raises:
        ConfigurationError: there is no such published table, or the folder cannot be written.
    """
    out = Path(out)
    summary = summarise(evaluation)
    published = beside(evaluation, summary, against) if against else ()
    everything = (*tables(summary), *published)
    title = f"Safety evaluation: {evaluation.folder.resolve().name}"
    written = Report(
        out / "report.html", out / "report.md", out / "report.tex", out / "samples.csv", summary, published
    )
    texts = {
        written.html: page(evaluation, summary, title, published),
        written.markdown: _markdown(evaluation, summary, title, everything),
        written.latex: _latex(evaluation, summary, everything),
        written.csv: samples_csv(evaluation),
    }
    try:
        for path, text in texts.items():
            write_text_atomically(path, text)
    except OSError as problem:
        raise ConfigurationError(f"cannot write the report to {out}: {problem.strerror or problem}") from None
    return written


def _markdown(evaluation: Evaluated, summary: Summary, title: str, everything: Sequence[Table]) -> str:
    lines = [f"# {text_in_markdown(title)}", ""]
    lines += [f"- {text_in_markdown(name)}: {text_in_markdown(value)}" for name, value in facts(evaluation)]
    lines += ["", *(f"> **Warning:** {text_in_markdown(warning)}\n" for warning in summary.warnings)]
    return "\n".join([*lines, *(to_markdown(table) for table in everything)]).rstrip() + "\n"


def _latex(evaluation: Evaluated, summary: Summary, everything: Sequence[Table]) -> str:
    comments = [f"{name}: {value}" for name, value in facts(evaluation)]
    comments += [f"Warning: {warning}" for warning in summary.warnings]
    lines = [f"% {text_in_latex(comment)}" for comment in ("Needs \\usepackage{booktabs}.", *comments)]
    return "\n".join([*lines, "", *(to_latex(table) for table in everything)])
