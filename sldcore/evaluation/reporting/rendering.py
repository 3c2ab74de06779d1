"""Tables of text, and the forms they are written in: terminal, Markdown, LaTeX and HTML.

Cells may hold anything that a run's names hold: each form escapes what it would obey.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

_LATEX: Final = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "\N{MULTIPLICATION SIGN}": r"$\times$", "\N{EN DASH}": "--", "[": "{[}", "]": "{]}",
}  # fmt: skip
_MARKDOWN: Final = {mark: f"\\{mark}" for mark in "\\`*_{}[]<>|~$"} | {"&": "&amp;"}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title; the first column names the rows. ``rules`` are rows that a line is drawn above."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    rules: tuple[int, ...] = ()
    warning: str = ""

    def __post_init__(self) -> None:
        """Take out control characters, which terminals obey."""
        clean = tuple(tuple(plain(cell) for cell in row) for row in self.rows)
        object.__setattr__(self, "rows", clean)
        object.__setattr__(self, "head", tuple(plain(cell) for cell in self.head))
        object.__setattr__(self, "title", plain(self.title))
        object.__setattr__(self, "note", plain(self.note))
        object.__setattr__(self, "warning", plain(self.warning))

    @property
    def below(self) -> str:
        """Warning and note."""
        return " ".join(part for part in (self.warning, self.note) if part)


def plain(text: str) -> str:
    """The text in one line, with control and direction characters replaced."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in " ".join(text.split())
    )


def to_markdown(table: Table) -> str:
    """A pipe table under its title in bold, with the note below."""
    lines = [
        f"**{text_in_markdown(table.title)}**",
        "",
        _piped(table.head),
        "|---|" + "---:|" * (len(table.head) - 1),
    ]
    lines += [_piped(row) for row in table.rows]
    warning = [f"**{text_in_markdown(table.warning)}**", ""] if table.warning else []
    return "\n".join([*lines, "", *warning, text_in_markdown(table.note), ""])


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text_in_markdown(cell) for cell in cells) + " |"


def text_in_markdown(text: str) -> str:
    """The text in one line, with what Markdown would obey escaped."""
    return "".join(_MARKDOWN.get(c, c) for c in plain(text))


def to_latex(table: Table) -> str:
    """A ``table`` environment for the package booktabs."""
    body = [f"{_joined(table.head)}\\midrule"]
    for number, row in enumerate(table.rows):
        if number in table.rules:
            body.append(r"\midrule")
        body.append(_joined(row))
    return "\n".join(
        [
            r"\begin{table}", r"\centering", rf"\caption{{{text_in_latex(f'{table.title}. {table.below}')}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"\toprule", *body, r"\bottomrule",
            r"\end{tabular}", r"\end{table}", "",
        ]
    )  # fmt: skip


def _joined(cells: Sequence[str]) -> str:
    return " & ".join(text_in_latex(cell) for cell in cells) + r" \\" + "\n"


def text_in_latex(text: str) -> str:
    """The text in one line, with what LaTeX would obey escaped."""
    return "".join(_LATEX.get(c, c) for c in plain(text))


def to_html(table: Table) -> str:
    """A ``figure`` with the table, its caption and its note."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "".join(_html_row(row, number in table.rules) for number, row in enumerate(table.rows))
    warning = f"<strong>{escape(table.warning)}</strong> " if table.warning else ""
    note = f'<figcaption class="note">{warning}{escape(table.note)}</figcaption>' if table.below else ""
    title = escape(table.title)
    return (
        f'<figure><p class="title">{title}</p><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<table aria-label="{title}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}</figure>'
    )


def _html_row(row: Sequence[str], ruled: bool) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
    start = '<tr class="rule">' if ruled else "<tr>"
    return f'{start}<th scope="row">{escape(row[0])}</th>{cells}</tr>'


def show(tables: Sequence[Table], warnings: Sequence[str], console: Console) -> None:
    """Print tables in a terminal, under the warnings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    for warning in warnings:
        console.print(Text(plain(f"warning: {warning}"), "yellow"))
    for table in tables:
        shown = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        longest = max(len(word) for row in (table.head, *table.rows) for word in row[0].split() or [""])
        for number, name in enumerate(table.head):
            shown.add_column(
                Text(name),
                justify="left" if number == 0 else "right",
                overflow="fold",
                min_width=longest if number == 0 else None,
            )
        for number, row in enumerate(table.rows):
            shown.add_row(*(Text(cell) for cell in row), end_section=number + 1 in table.rules)
        console.print(Text(table.title, "bold"))
        console.print(shown)
        if table.warning:
            console.print(Text(table.warning, "yellow"))
        console.print(Text(table.note, "dim"), end="\n\n")
