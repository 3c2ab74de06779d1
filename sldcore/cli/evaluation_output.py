"""What ``sld eval`` shows: progress with the time left, what is to be done, and comparisons."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from sldcore.evaluation.comparing import Comparison
    from sldcore.evaluation.outlook import Outlook
    from sldcore.evaluation.planning import Plan

INTERRUPTED: Final = 130


@contextmanager
def clean_exit(messages: Console, folder: Path) -> Iterator[None]:
    """One message and an exit code for what ``sld`` itself does not handle: a full disk, Ctrl-C."""
    try:
        yield
    except OSError as problem:
        say(messages, "error", f"{problem}. What was finished stays in {folder}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say(
            messages,
            "interrupted",
            f"what was finished stays in {folder}; the same command goes on from there",
        )
        raise typer.Exit(INTERRUPTED) from None


def say(messages: Console, kind: str, text: str) -> None:
    """One message, such as ``error: ...``."""
    messages.print(f"[bold red]{kind}:[/] {escape(text)}", highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console) -> Iterator[Told]:
    """Bars with the time left on a terminal, and a line now and then elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield Told(console, bars)


class Told:
    """Is told of every batch, and shows it."""

    EVERY: Final = 30.0
    """Lines are at least this far apart, in seconds, where there is no terminal."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console, self._bars = console, bars
        self._tasks: dict[str, TaskID] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` samples have passed the stage."""
        now = time.monotonic()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._first[stage] = (now, done)
        self._bars.update(self._tasks[stage], completed=done, total=total)
        if not self._console.is_terminal and (now - self._last >= self.EVERY or done == total):
            self._last = now
            since, before = self._first[stage]
            left = (now - since) / (done - before) * (total - done) if done > before else None
            more = "" if not left else f", {duration(left)} left"
            self._console.print(f"{stage}: {done}/{total}{more}", highlight=False)


def outlook_table(plan: Plan, found: Outlook) -> Table:
    """What is to be done and what it costs."""
    table = Table("what", "how much", box=None, pad_edge=False, header_style="bold")
    table.add_row("model", f"{plan.settings.model} ({plan.settings.dtype} on {plan.settings.device})")
    for benchmark in plan.benchmarks:
        table.add_row(
            "benchmark",
            f"{benchmark.name} {benchmark.version}, {len(benchmark.items)} items, {benchmark.data_hash}",
        )
    table.add_row("samples", f"{found.samples:,}, of which {found.missing:,} are missing")
    for method, count in found.methods.items():
        table.add_row("", f"{method}: {count:,} missing")
    table.add_row("denoiser rows", f"at most {found.rows:,}")
    table.add_row(
        "time",
        "unknown until some are made"
        if found.seconds is None
        else f"about {duration(found.seconds)} on one device",
    )
    table.add_row(
        "disk", "unknown until some are made" if found.bytes is None else f"about {found.bytes / 1e6:,.1f} MB"
    )
    return table


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )


def comparisons(found: Sequence[Comparison]) -> Group:
    """A table per benchmark and detector, and in it a line per comparison."""
    tables: dict[tuple[str, str], Table] = {}
    for each in found:
        where = (each.benchmark, each.detector)
        if where not in tables:
            title = escape(f"{each.benchmark} by {each.detector}")
            tables[where] = Table(
                title=title, title_justify="left", header_style="bold", box=None, pad_edge=False
            )
            tables[where].add_column("a, b", overflow="fold")
            for heading in ("a - b", "95 %", "only a/b", "p", "Holm", "pairs"):
                tables[where].add_column(heading, justify="right")
        difference, test = each.difference, each.test
        failed = f"\n{difference.failed} failed" if difference.failed else ""
        tables[where].add_row(
            escape(f"{each.first}\n{each.second}"), f"{difference.value:+.3f}",
            f"{difference.low:+.3f}\n{difference.high:+.3f}", f"{test.first_only}/{test.second_only}",
            _p(test.p), _p(each.corrected), f"{difference.n}{failed}",
        )  # fmt: skip
    return Group(*tables.values())


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
