"""What ``sld audit`` prints of records: a table with a line for each, or everything about one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any, Final

_FIRST: Final = ("seq", "time", "kind", "request", "index", "key", "model", "prompt", "prompt_sha256", "seed")
"""What is shown first of a record, where it has it; all else follows by name."""

_OWN: Final = ("verdicts", "errors", "earlier", "timings", "hash", "probes", "unguided")
"""What has a form of its own, or stands at the end."""

_MALFORMED: Final = (AttributeError, KeyError, TypeError, ValueError)
"""What records raise that somebody else wrote, in another form."""

_LABEL: Final = 15
"""Columns for names: with a space and a hash, 80."""


def printable(value: Any) -> str:
    """A value on one line: what would move a terminal's cursor, or colour it, is escaped."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)


def flagged_by(row: Mapping[str, Any]) -> str:
    """The categories that reached their thresholds, or the filters that flagged; those that only watch in brackets.

    A question mark where verdicts are not in the form that this project writes.
    """
    try:
        return ", ".join(dict.fromkeys(_flags(row)))
    except _MALFORMED:
        return "?"


def _flags(row: Mapping[str, Any]) -> Iterator[str]:
    for verdict in row.get("verdicts", ()):
        if verdict["flagged"]:
            name = ", ".join(above(verdict)) or str(verdict["filter"])
            yield f"({name})" if verdict["shadow"] else name


def above(verdict: Mapping[str, Any]) -> list[str]:
    """Categories whose score reaches the threshold."""
    scores, limits = verdict["scores"], verdict["thresholds"].items()
    return [name for name, limit in limits if limit is not None and (scores.get(name) or 0) >= limit]


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per record, in the order given."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in ("seq", "time", "key", "what", "policy", "action"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "seq" else "left")
    table.add_column("flagged by", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in _cells(row)))
    Console().print(table)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row.get("unreadable"):
        return (str(row["seq"]), "", "", "unreadable", "", "", "")
    time = str(row.get("time", "")).replace("T", " ")[:19]
    named = [row.get(name) for name in ("key", "kind", "policy", "action")]
    return (str(row["seq"]), time, *("-" if each is None else str(each) for each in named), flagged_by(row))


def print_record(row: Mapping[str, Any]) -> None:
    """Everything about one record."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    width = max(console.width - _LABEL - 1, 20)
    try:
        lines = list(_lines(row))
    except _MALFORMED:
        lines = [(printable(name), printable(value)) for name, value in row.items()]
    for name, value in lines:
        first, *more = wrap(value, width, break_long_words=False, break_on_hyphens=False) or [""]
        for label, line in ((name, first), *(("", line) for line in more)):
            console.print(Text(f"{label:<{_LABEL}} {line}"), soft_wrap=True)


def _lines(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and what to say to each."""
    first = [name for name in _FIRST if name in row]
    others = sorted(name for name in row if name not in (*_FIRST, *_OWN, "format"))
    for name in (*first, *others):
        if row[name] != []:
            yield printable(name), "-" if row[name] is None else printable(row[name])
    yield from _reviews(row)
    for probe in row.get("probes", ()):
        yield "probe", printable(probe["reason"])
    if "unguided" in row:
        unguided = row["unguided"]
        shown = "shown" if unguided["shown"] else "not shown"
        flags = printable(flagged_by(unguided)) or "-"
        yield "unguided", f"{shown}, action {printable(unguided['action'])}, flagged by: {flags}"
    if "timings" in row:
        seconds = (f"{printable(name)} {value or 0:.3f} s" for name, value in row["timings"].items())
        yield "timings", ", ".join(seconds)
    yield "hash", row["hash"] or "not chained"


def _reviews(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for verdict in row.get("verdicts", ()):
        yield from _verdict("verdict", verdict)
    for error in row.get("errors", ()):
        yield "error", printable(f"{error['source']} {error['version']}: {error['error']}")
    for attempt in row.get("earlier", ()):
        yield "earlier", printable(f"seed {attempt['seed']}, policy {attempt['policy']}")
        for verdict in attempt["verdicts"]:
            yield from _verdict("", verdict)


def _verdict(heading: str, verdict: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    says = ("flagged" if verdict["flagged"] else "clean") + (", only watching" if verdict["shadow"] else "")
    ranked = sorted(verdict["scores"].items(), key=lambda each: -(each[1] or 0))
    scores = ", ".join(f"{name} {score or 0:.2f}{_limit(verdict, name)}" for name, score in ranked)
    name = f"{verdict['filter']} {verdict['version']}"
    yield heading, printable(f"{name}: {says}{f' ({scores})' if scores else ''}")
    if verdict.get("reason"):
        yield "", printable(verdict["reason"])


def _limit(verdict: Mapping[str, Any], name: str) -> str:
    limit = verdict["thresholds"].get(name)
    return "" if limit is None else f" of {limit:g}"
