"""Tables of text, and the forms they are written in: terminal, Markdown, LaTeX and HTML.

Cells may hold anything that a run's names hold: each form escapes what it would obey.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

_LATEX: Final = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "\N{MULTIPLICATION SIGN}": r"$\times$", "\N{EN DASH}": "--", "[": "{[}", "]": "{]}",
}  # fmt: skip
_MARKDOWN: Final = {mark: f"\\{mark}" for mark in "\\`*_{}[]<>|~$"} | {"&": "&amp;"}

_FIRST: Final = 24
"""Characters of the first column in a terminal; longer names are broken between words."""

_EDGES: Final = 2
_GAP: Final = 2
"""Blank characters that rich puts around a table, and before each column."""

_LONGEST_WORD: Final = 40
"""Words that are longer are broken too."""


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
    from rich.text import Text

    for warning in warnings:
        console.print(Text(plain(f"warning: {warning}"), "yellow"))
    for table in tables:
        console.print(Text(table.title, "bold"))
        for block in fitting(table, console.width):
            console.print(_in_terminal(block))
        if table.warning:
            console.print(Text(table.warning, "yellow"))
        console.print(Text(table.note, "dim"), end="\n\n")


def fitting(table: Table, width: int) -> list[Table]:
    """The table as blocks of columns that fit into so many characters, each with the first column.

    Cells stay in one line; heads and the first column may be broken between words. A block has at least one column, however narrow.
    """
    sizes = [
        max(_longest(name), *(len(row[at]) for row in table.rows), 1) for at, name in enumerate(table.head)
    ]
    room = width - _first_width(table) - _EDGES
    blocks: list[list[int]] = []
    left = 0
    for at, size in list(enumerate(sizes))[1:]:
        if not blocks or size + _GAP > left:
            blocks.append([])
            left = room
        blocks[-1].append(at)
        left -= size + _GAP
    parts = [[0, *columns] for columns in blocks] or [[0]]
    return [
        replace(
            table,
            head=tuple(table.head[at] for at in part),
            rows=tuple(tuple(row[at] for at in part) for row in table.rows),
        )
        for part in parts
    ]


def _longest(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _first_width(table: Table) -> int:
    """Characters that the first column takes: texts are broken between words, and words only if they are very long."""
    texts = [table.head[0], *(row[0] for row in table.rows)]
    return min(max(min(max(map(len, texts)), _FIRST), *map(_longest, texts)), _LONGEST_WORD)


def _in_terminal(table: Table) -> RichTable:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(table.head):
        first = number == 0
        shown.add_column(
            Text(name),
            justify="left" if first else "right",
            overflow="fold",
            width=_first_width(table) if first else None,
        )
    for number, row in enumerate(table.rows):
        shown.add_row(*(Text(cell) for cell in row), end_section=number + 1 in table.rules)
    return shown
